"""DPE attention in plain PyTorch: the truth that every other implementation is tested against."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ml_core.kernels.dpe_attention.positions import Band, LogBuckets, table_entries, visibility


def dpe_attention(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b h m k"],
    v: Float[Tensor, "b h m k"],
    table: Float[Tensor, "h t"],
    *,
    causal: bool = False,
    key_mask: Bool[Tensor, "b m"] | None = None,
    segment_ids: Int[Tensor, "b m"] | None = None,
    band: Band | None = None,
    buckets: LogBuckets | None = None,
    offset: int = 0,
    scale: float | None = None,
) -> Float[Tensor, "b h n k"]:
    """softmax(q kᵀ · scale + B) v with B[i, j] = table[head, i − j + N − 1], t = 2N − 1 (engine.md, section 2).

    `offset` is the position of the first query among the keys; distances beyond ±(N − 1) are clamped to it, or share
    entries as `buckets` says. A query sees a key when all given masks allow it; one that sees no key gets zeros.
    `scale` is 1/√k unless given.
    """
    visible = _visible(
        q, k, causal=causal, key_mask=key_mask, segment_ids=segment_ids, band=band, offset=offset
    )  # fmt: skip
    return _weighted(_scores(q, k, table, offset=offset, scale=scale, buckets=buckets, visible=visible), v, visible)


def dpe_attention_sums(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b h m k"],
    v: Float[Tensor, "b h m k"],
    table: Float[Tensor, "h t"],
    *,
    causal: bool = False,
    key_mask: Bool[Tensor, "b m"] | None = None,
    segment_ids: Int[Tensor, "b m"] | None = None,
    band: Band | None = None,
    buckets: LogBuckets | None = None,
    offset: int = 0,
    scale: float | None = None,
) -> tuple[Float[Tensor, "b h n k"], Float[Tensor, "b h n"]]:
    """dpe_attention, and the logarithm of each row's sum of exponentials: −∞ for a row that sees no key.

    With it, attention on two sets of keys can be joined into attention on both.
    """
    visible = _visible(
        q, k, causal=causal, key_mask=key_mask, segment_ids=segment_ids, band=band, offset=offset
    )  # fmt: skip
    found = _scores(q, k, table, offset=offset, scale=scale, buckets=buckets, visible=visible)
    sums = found.logsumexp(-1)
    if visible is not None:
        sums = sums.masked_fill(~visible.any(-1), -torch.inf)
    return _weighted(found, v, visible), sums


def _scores(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b h m k"],
    table: Float[Tensor, "h t"],
    *,
    offset: int,
    scale: float | None,
    buckets: LogBuckets | None,
    visible: Bool[Tensor, "#b 1 n m"] | None,
) -> Float[Tensor, "b h n m"]:
    """q kᵀ · scale + B; the lowest number there is where a query must not see a key."""
    found = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    found = found + distance_bias(table, n=q.shape[2], m=k.shape[2], offset=offset, buckets=buckets)
    # a row without any key would be softmax of -inf alone, which is NaN: forward and backward
    return found if visible is None else found.masked_fill(~visible, torch.finfo(found.dtype).min)


def distance_bias(
    table: Float[Tensor, "h t"], *, n: int, m: int, offset: int = 0, buckets: LogBuckets | None = None
) -> Float[Tensor, "h n m"]:
    """B as a matrix: entry (i, j) is the table's value for the distance offset + i − j."""
    queries = torch.arange(offset, offset + n, device=table.device)
    keys = torch.arange(m, device=table.device)
    return table[:, table_entries(queries[:, None] - keys[None, :], reach=table.shape[1] // 2, buckets=buckets)]


def _weighted(found: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    weights = found.softmax(-1).to(v.dtype)  # scores are in the table's precision
    return (weights if visible is None else weights.masked_fill(~visible, 0.0)) @ v


def _visible(
    q: Tensor,
    k: Tensor,
    *,
    causal: bool,
    key_mask: Tensor | None,
    segment_ids: Tensor | None,
    band: Band | None,
    offset: int,
) -> Tensor | None:
    return visibility(
        n=q.shape[2],
        m=k.shape[2],
        causal=causal,
        key_mask=key_mask,
        segment_ids=segment_ids,
        band=band,
        offset=offset,
        device=q.device,
    )
