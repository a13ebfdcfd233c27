"""Public face of DPE attention: checks shapes, then runs the implementation that suits, or the one demanded."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ml_core.errors import InputError
from ml_core.kernels.dpe_attention import naive

Backend = Literal["auto", "naive", "sdpa"]


def dpe_attention(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b h m k"],
    v: Float[Tensor, "b h m k"],
    table: Float[Tensor, "h t"],
    *,
    causal: bool = False,
    key_mask: Bool[Tensor, "b m"] | None = None,
    segment_ids: Int[Tensor, "b m"] | None = None,
    offset: int = 0,
    scale: float | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "b h n k"]:
    """softmax(q kᵀ · scale + B) v; see naive.dpe_attention for what each argument means.

    `backend` forces an implementation; "auto" is what `choose` names. Raises InputError naming a wrong argument.
    """
    _check(q, k=k, v=v, table=table, key_mask=key_mask, segment_ids=segment_ids, offset=offset)
    chosen = choose(q) if backend == "auto" else backend
    run = naive.dpe_attention if chosen == "naive" else _sdpa
    return run(q, k, v, table, causal=causal, key_mask=key_mask, segment_ids=segment_ids, offset=offset, scale=scale)


def choose(q: Float[Tensor, "b h n k"]) -> Literal["naive", "sdpa"]:
    """The backend of "auto": sdpa on the CPU without gradients (1.4 × as fast, docs/log.md, 2026-11-25), else naive."""
    return "sdpa" if q.device.type == "cpu" and not torch.is_grad_enabled() else "naive"


def _sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    *,
    causal: bool,
    key_mask: Tensor | None,
    segment_ids: Tensor | None,
    offset: int,
    scale: float | None,
) -> Tensor:
    """torch's scaled_dot_product_attention with the bias written out as a matrix."""
    n, m = q.shape[2], k.shape[2]
    bias = naive.distance_bias(table, n=n, m=m, offset=offset).to(q.dtype)[None]
    visible = naive.visibility(
        n=n, m=m, causal=causal, key_mask=key_mask, segment_ids=segment_ids, offset=offset, device=q.device
    )
    if visible is None:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    bias = bias.masked_fill(~visible, torch.finfo(q.dtype).min)
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return out.masked_fill(~visible.any(-1, keepdim=True), 0.0)


def _check(
    q: Tensor,
    *,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    key_mask: Tensor | None,
    segment_ids: Tensor | None,
    offset: int,
) -> None:
    if q.ndim != 4:
        raise InputError(f"q: expected (b, h, n, k), got {tuple(q.shape)}")
    b, h, n, size = q.shape
    if k.ndim != 4 or k.shape[:2] != (b, h) or k.shape[3] != size:
        raise InputError(f"k: expected ({b}, {h}, m, {size}), got {tuple(k.shape)}")
    if v.shape != k.shape:
        raise InputError(f"v: expected {tuple(k.shape)}, got {tuple(v.shape)}")
    if table.ndim != 2 or table.shape[0] != h or table.shape[1] % 2 == 0:
        raise InputError(f"table: expected ({h}, 2N - 1), got {tuple(table.shape)}")
    m = k.shape[2]
    for name, mask in (("key_mask", key_mask), ("segment_ids", segment_ids)):
        if mask is not None and mask.shape != (b, m):
            raise InputError(f"{name}: expected ({b}, {m}), got {tuple(mask.shape)}")
    if segment_ids is not None and not 0 <= offset <= m - n:
        raise InputError(f"offset: {offset} puts {n} queries outside the {m} positions of segment_ids")
