"""What alignment costs: floating-point operations of one step, and time without waiting for the device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

from ml_core.distill.dfad import DFAD
from ml_core.distill.features import Features


def alignment_flops(dfad: DFAD, student: Features, teacher: Features) -> int:
    """Floating-point operations of one alignment, forward and backward (matrix products; the rest is small).

    The student's features should require a gradient. Works on the meta device, so that any size can be asked for.
    """
    with FlopCounterMode(display=False) as counter:
        task = student.pooled.sum() * 0.0
        dfad(student, teacher, task, 0.0).total.backward()
    return counter.get_total_flops()


class Meter:
    """Sums the time of the marked pieces of work. On CUDA by events: nothing waits until `read`."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def mark(self, device: torch.device) -> Iterator[None]:
        """Time what runs inside, on that device."""
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began

    def read(self) -> float:
        """Seconds marked since the last reading; waits for the device."""
        if self._events:
            self._events[-1][1].synchronize()
        total = self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1e3
        self._seconds, self._events = 0.0, []
        return total
