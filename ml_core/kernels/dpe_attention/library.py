"""DPE attention as operators of torch: with fakes and gradients, so that compile and export see one node.

Masks of keys and segments come as ids, which `op.py` makes; `exact` and `far` are LogBuckets, or 0.
"""

from typing import Any

import torch
from torch import Tensor

from ml_core.errors import InputError
from ml_core.kernels.dpe_attention import blockwise
from ml_core.kernels.dpe_attention.positions import LogBuckets, Masks


@torch.library.custom_op("assay::dpe_forward", mutates_args=())
def dpe_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    q_ids: Tensor | None,
    k_ids: Tensor | None,
    causal: bool,
    segment: int,
    before: int,
    after: int,
    offset: int,
    exact: int,
    far: int,
    scale: float,
    backend: str,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    """Output, and the logarithm of each row's sum. backend: "triton" or "blockwise"."""
    masks = Masks(causal, q_ids, k_ids, segment, before, after, offset)
    if backend == "blockwise":
        return blockwise.forward(q, k, v, table, masks, scale=scale, buckets=_buckets(exact, far))
    if backend == "triton":
        from ml_core.kernels.dpe_attention import launch

        return launch.forward(q, k, v, table, masks, scale=scale, buckets=_buckets(exact, far))
    raise InputError(f"backend: {backend!r} is neither triton nor blockwise")


@torch.library.custom_op("assay::dpe_prefixed", mutates_args=())
def dpe_prefixed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    prefix_bias: Tensor,
    q_ids: Tensor | None,
    k_ids: Tensor | None,
    causal: bool,
    segment: int,
    before: int,
    after: int,
    scale: float,
) -> Tensor:
    """Output of Triton's kernel on a band of keys and on more keys with a bias by segment. Inference only."""
    from ml_core.kernels.dpe_attention import launch

    masks = Masks(causal, q_ids, k_ids, segment, before, after)
    return launch.forward(q, k, v, table, masks, scale=scale, prefix=(prefix_k, prefix_v, prefix_bias))[0]


@dpe_prefixed.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    b, h, n, size = q.shape
    return q.new_empty(b, n, h, size).transpose(1, 2)


@torch.library.custom_op("assay::dpe_backward", mutates_args=())
def dpe_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
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
    exact: int,
    far: int,
    scale: float,
    backend: str,
    deterministic: bool,
    with_table: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the table."""
    masks = Masks(causal, q_ids, k_ids, segment, before, after, offset)
    if backend == "blockwise":
        return blockwise.backward(q, k, v, table, out, lse, do, dlse, masks, scale=scale, buckets=_buckets(exact, far))
    from ml_core.kernels.dpe_attention import launch

    plan = launch.backward_plan(q, deterministic=deterministic)
    return launch.backward(
        q, k, v, table, out, lse, do, dlse, masks, scale=scale, plan=plan, buckets=_buckets(exact, far),
        with_table=with_table,
    )  # fmt: skip


@dpe_forward.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    b, h, n, size = q.shape
    sums = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(b, n, h, size).transpose(1, 2), q.new_empty(b, h, n, dtype=sums)


@dpe_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, table: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums = torch.promote_types(q.dtype, torch.float32)
    grads = [x.new_empty(x.shape) for x in (q, k, v)]
    return grads[0], grads[1], grads[2], table.new_empty(table.shape, dtype=sums)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, table, q_ids, k_ids, *rest = inputs
    ctx.rest = rest
    ctx.save_for_backward(q, k, v, table, q_ids, k_ids, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, table, q_ids, k_ids, out, lse = ctx.saved_tensors
    do = torch.zeros_like(out) if do is None else do
    grads = dpe_backward(q, k, v, table, out, lse, do, dlse, q_ids, k_ids, *ctx.rest, ctx.needs_input_grad[3])
    return (*grads[:3], grads[3].to(table.dtype), *[None] * (2 + len(ctx.rest)))


dpe_forward.register_autograd(_backward, setup_context=_setup)


def _buckets(exact: int, far: int) -> LogBuckets | None:
    return LogBuckets(exact=exact, far=far) if exact else None
