"""Gradients of a fused forward: the same formula once more in torch's own operators, whose products are cuBLAS's."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def with_backward(fused: Callable[..., Tensor], plain: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
    """fused(*tensors), with the gradients of plain(*tensors). Nothing but the inputs is kept for the backward pass."""
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors):
        return _Recomputed.apply(fused, plain, *tensors)
    return fused(*tensors)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fused: Any, plain: Any, *tensors: Tensor | None) -> Tensor:
        ctx.plain = plain
        ctx.save_for_backward(*tensors)
        return fused(*(None if each is None else each.detach() for each in tensors))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        wanted = ctx.needs_input_grad[2:]
        leaves: list[Any] = [
            None if each is None else each.detach().requires_grad_(want)
            for each, want in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        with torch.enable_grad():
            out = ctx.plain(*leaves)
        found = torch.autograd.grad(out, [x for x, want in zip(leaves, wanted, strict=True) if want], gradients[0])
        ready = iter(found)
        return (None, None, *(next(ready) if want else None for want in wanted))
