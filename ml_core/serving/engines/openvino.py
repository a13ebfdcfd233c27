"""OpenVINO on the CPU. The package is imported when a program is compiled for it."""

from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch import Tensor

from ml_core.errors import InputError
from ml_core.serving.engines.interface import Program, System
from ml_core.serving.engines.packages import installed

_PRECISION = {"int8": "f32", "fp32": "f32", "bf16": "bf16"}  # of what is not quantized


class OpenVino:
    """A compiled model and its requests: each call takes one, so threads may share it."""

    def __init__(self, model: bytes, *, system: System, program: Program, threads: int, streams: int = 1) -> None:
        """model: of export.onnx_bytes, in the system's form. streams: calls that run side by side, `threads` each.

        Raises EngineMissing, and InputError for bf16 on a CPU that only emulates it.
        """
        runtime = installed("openvino")
        core = runtime.Core()
        wanted = _PRECISION[system.precision]
        if wanted == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise InputError("system: this CPU has no bf16 of its own")
        options = {
            "INFERENCE_PRECISION_HINT": wanted,
            "INFERENCE_NUM_THREADS": threads * streams,
            "NUM_STREAMS": streams,
        }
        self.system, self.version, self._inputs = system, str(runtime.__version__), program.inputs
        self._model: Any = core.compile_model(core.read_model(model), "CPU", options)
        self._names = {name for port in self._model.inputs for name in port.get_names()}
        self._requests: SimpleQueue[Any] = SimpleQueue()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See interface.Compiled."""
        try:
            request = self._requests.get_nowait()
        except Empty:
            request = self._model.create_infer_request()
        feeds = {
            name: tensor.detach().contiguous().numpy()
            for name, tensor in zip(self._inputs, inputs, strict=True)
            if name in self._names
        }
        try:
            found = request.infer(feeds, share_inputs=True, share_outputs=False)
            return tuple(torch.from_numpy(found[port].copy()) for port in self._model.outputs)
        finally:
            self._requests.put(request)
