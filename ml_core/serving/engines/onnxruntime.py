"""ONNX Runtime on the CPU. The package is imported when a program is compiled for it."""

from typing import Any

import torch
from torch import Tensor

from ml_core.serving.engines.interface import Program, System
from ml_core.serving.engines.packages import installed


class OnnxRuntime:
    """A session. Threads may share it: a run keeps nothing in it."""

    def __init__(self, model: bytes, *, system: System, program: Program, threads: int) -> None:
        """model: of export.onnx_bytes, in the system's form. threads: of one operator; with 1 no thread is started.

        Raises EngineMissing.
        """
        runtime = installed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self.system, self.version, self._inputs = system, str(runtime.__version__), program.inputs
        self._outputs = list(program.outputs)
        self._session: Any = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See interface.Compiled."""
        # an input that nothing reads is no input of the graph
        wanted = {each.name for each in self._session.get_inputs()}
        feeds = {
            name: tensor.detach().numpy() for name, tensor in zip(self._inputs, inputs, strict=True) if name in wanted
        }
        return tuple(torch.from_numpy(each) for each in self._session.run(self._outputs, feeds))
