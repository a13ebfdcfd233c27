"""DPE attention as operators of torch: with fakes and gradients, so that compile and export see one node.

The table comes spread (positions.spread), the masks as ids; `op.py` makes both.
"""

from typing import Any

import torch
from torch import Tensor

from ml_core.errors import InputError
from ml_core.kernels.dpe_attention import blockwise
from ml_core.kernels.dpe_attention.positions import Masks


@torch.library.custom_op("assay::dpe_forward", mutates_args=())
def dpe_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    q_ids: Tensor | None,
    k_ids: Tensor | None,
    causal: bool,
    segment: int,
    before: int,
    after: int,
    offset: int,
    scale: float,
    backend: str,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    """Output, and the logarithm of each row's sum. backend: "triton" or "blockwise"."""
    masks = Masks(causal, q_ids, k_ids, segment, before, after, offset)
    if backend == "blockwise":
        return blockwise.forward(q, k, v, bias, masks, scale=scale)
    if backend == "triton":
        from ml_core.kernels.dpe_attention import launch

        return launch.forward(q, k, v, bias, masks, scale=scale)
    raise InputError(f"backend: {backend!r} is neither triton nor blockwise")


@torch.library.custom_op("assay::dpe_backward", mutates_args=())
def dpe_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    out: Tensor,
    lse: Tensor,
    do: Tensor,
    dlse: Tensor | None,
    q_ids: Tensor | None,
    k_ids: Tensor | None,
    causal: bool,
    segment: int,
    before: int,
    after: int,
    offset: int,
    scale: float,
    backend: str,
    deterministic: bool,
    table: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the spread table."""
    masks = Masks(causal, q_ids, k_ids, segment, before, after, offset)
    if backend == "blockwise":
        return blockwise.backward(q, k, v, bias, out, lse, do, dlse, masks, scale=scale)
    from ml_core.kernels.dpe_attention import launch

    plan = launch.backward_plan(q, deterministic=deterministic)
    return launch.backward(q, k, v, bias, out, lse, do, dlse, masks, scale=scale, plan=plan, table=table)


@dpe_forward.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    b, h, n, size = q.shape
    sums = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(b, n, h, size).transpose(1, 2), q.new_empty(b, h, n, dtype=sums)


@dpe_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums = torch.promote_types(q.dtype, torch.float32)
    grads = [x.new_empty(x.shape) for x in (q, k, v)]
    return grads[0], grads[1], grads[2], bias.new_empty(bias.shape, dtype=sums)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, bias, q_ids, k_ids, *rest = inputs
    ctx.rest = rest
    ctx.save_for_backward(q, k, v, bias, q_ids, k_ids, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, bias, q_ids, k_ids, out, lse = ctx.saved_tensors
    do = torch.zeros_like(out) if do is None else do
    grads = dpe_backward(q, k, v, bias, out, lse, do, dlse, q_ids, k_ids, *ctx.rest, ctx.needs_input_grad[3])
    return (*grads[:3], grads[3].to(bias.dtype), *[None] * (2 + len(ctx.rest)))


dpe_forward.register_autograd(_backward, setup_context=_setup)
