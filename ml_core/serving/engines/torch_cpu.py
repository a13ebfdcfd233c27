"""torch on the CPU: the path that every other engine is held against, eager or compiled by inductor."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from ml_core.serving.engines.forms import spelt
from ml_core.serving.engines.interface import Program, System

_SHAPES = 256


class TorchCpu:
    """The module itself ("native"), or a copy in another form; compiled for each new shape where the system says so."""

    def __init__(self, *, system: System, program: Program, threads: int) -> None:
        """threads: of one operator, set around each call where it is not torch's setting already."""
        self.system, self.version, self.threads = system, torch.__version__, threads
        module = (
            program.module.eval() if system.form in ("native", "float") else spelt(program.module, form=system.form)
        )
        self._half = system.precision == "bf16"
        self._call = torch.compile(module, dynamic=False) if system.compiled else module

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See interface.Compiled."""
        # every shape is compiled: none falls back to eager at a limit
        limit = torch._dynamo.config.patch(recompile_limit=_SHAPES) if self.system.compiled else nullcontext()
        half = torch.autocast("cpu", torch.bfloat16, enabled=self._half)
        with torch.inference_mode(), _threads(self.threads), half, limit:
            found = self._call(*inputs)
        return found if isinstance(found, tuple) else (found,)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
