"""How many kernels a call launches: on CUDA as the profiler counts them, on the CPU the operators that do work."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# operators that only look at memory in another way, or make room
_VIEWS = frozenset(
    f"aten::{name}"
    for name in (
        "view", "_unsafe_view", "reshape", "transpose", "t", "permute", "unsqueeze", "squeeze", "slice", "select",
        "expand", "as_strided", "unbind", "split", "split_with_sizes", "chunk", "unflatten", "flatten", "detach",
        "alias", "numpy_T", "empty", "empty_like", "empty_strided", "result_type", "is_nonzero", "item", "unsafe_chunk",
        "unsafe_split", "narrow", "resolve_conj", "resolve_neg", "lift_fresh", "resize_", "set_data", "view_as",
    )
)  # fmt: skip


def count_launches(call: Callable[[], object]) -> int:
    """Kernels of one call, after one to warm up: CUDA's where it is there, else ATen's operators, views left out.

    On the CPU an operator within an operator is part of it (linear is one, not addmm and more).
    """
    cuda = torch.cuda.is_available()
    call()
    if cuda:
        torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiled:
        call()
        if cuda:
            torch.cuda.synchronize()
    events: list[Any] = list(profiled.events())
    if cuda:
        on_device = [each for each in events if each.device_type == torch.autograd.DeviceType.CUDA]
        return sum(1 for each in on_device if not each.name.startswith(("Memcpy", "Memset")))
    return sum(1 for each in events if _works(each))


def _works(event: Any) -> bool:
    if not event.name.startswith("aten::") or event.name in _VIEWS:
        return False
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith("aten::") and parent.name not in _VIEWS:
            return False
        parent = parent.cpu_parent
    return True
