"""Distances and masks of DPE attention: which entry of the table a distance has, and which keys a query may see."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MARGIN = 256  # entries beyond both ends of a spread table: a kernel's last tiles read there, and drop what they read


@dataclass(frozen=True, kw_only=True)
class LogBuckets:
    """Distances up to `exact` have an entry each; from there to `far`, buckets of equal ratio share the table's rest.

    Beyond `far` all distances share the outermost entry (Raffel et al. 2020, T5, section 2.1, for each sign).
    """

    exact: int
    far: int


@dataclass(frozen=True, kw_only=True)
class Band:
    """Positions in segments of `segment`: a query sees keys of its own, of `before` earlier and `after` later ones."""

    segment: int
    before: int = 1
    after: int = 1


MASKED = torch.iinfo(torch.int32).min  # the id of a key that nobody sees


class Masks(NamedTuple):
    """What a query may see, as the kernels take it: see op.dpe_attention. Ids are int32, (b, n) and (b, m)."""

    causal: bool = False
    q_ids: Tensor | None = None
    k_ids: Tensor | None = None
    segment: int = 0
    before: int = 0
    after: int = 0
    offset: int = 0


def table_entries(distance: Int[Tensor, "*d"], *, reach: int, buckets: LogBuckets | None) -> Int[Tensor, "*d"]:
    """The column of a table of 2 · reach + 1 entries that each distance (query minus key) has."""
    if buckets is None:
        return distance.clamp(-reach, reach) + reach
    size = distance.abs()
    ratio = (size.clamp_min(1).double() / buckets.exact).log() / math.log(buckets.far / buckets.exact)
    # the nudge keeps a distance that lies on a bucket's edge there on every device
    steps = torch.ceil(ratio * (reach - buckets.exact) - 1e-9).long()
    shared = (buckets.exact + steps).clamp_max(reach)
    return torch.where(size <= buckets.exact, size, shared) * distance.sign() + reach


def spread_length(*, n: int, m: int) -> int:
    """Entries of a spread table: one for each distance, and the margins. Even."""
    length = origin(n) + m + MARGIN
    return length + length % 2


def origin(n: int) -> int:
    """The entry of query i and key j = i, less j − i, in a spread table. Even: kernels read pairs that start there."""
    return n + n % 2 + MARGIN


def spread(
    table: Float[Tensor, "h t"], *, n: int, m: int, offset: int, buckets: LogBuckets | None
) -> Float[Tensor, "h l"]:
    """The bias in the order in which it is read: query i and key j have entry j − i + origin(n).

    Clamps, buckets and the offset are dealt with here, once, in memory of O(n + m).
    """
    return table.index_select(1, _columns(table, n=n, m=m, offset=offset, buckets=buckets))


def collect(
    gradient: Float[Tensor, "h l"],
    table: Float[Tensor, "h t"],
    *,
    n: int,
    m: int,
    offset: int,
    buckets: LogBuckets | None,
    deterministic: bool,
) -> Float[Tensor, "h t"]:
    """The gradient of a table, from that of its spread. deterministic: what shares an entry is added in one order."""
    columns = _columns(table, n=n, m=m, offset=offset, buckets=buckets)
    if not deterministic:
        zeros = torch.zeros(table.shape, dtype=gradient.dtype, device=table.device)
        return zeros.index_add_(1, columns, gradient)
    # columns fall along a spread table, so flipped they rise, and what entry t gets is one run
    entries = torch.arange(table.shape[1], device=columns.device)
    runs = torch.searchsorted(columns.flip(0), entries, right=True).diff(prepend=entries.new_zeros(1))
    return torch.segment_reduce(gradient.flip(1).t().contiguous(), "sum", lengths=runs, axis=0).t().contiguous()


def _columns(table: Tensor, *, n: int, m: int, offset: int, buckets: LogBuckets | None) -> Tensor:
    distance = offset + origin(n) - torch.arange(spread_length(n=n, m=m), device=table.device)
    return table_entries(distance, reach=table.shape[1] // 2, buckets=buckets)


def visibility(
    *,
    n: int,
    m: int,
    causal: bool,
    key_mask: Bool[Tensor, "b m"] | None,
    segment_ids: Int[Tensor, "b m"] | None,
    band: Band | None,
    offset: int,
    device: torch.device,
) -> Bool[Tensor, "#b 1 n m"] | None:
    """True where query i may see key j; None when every query sees every key."""
    visible: Tensor | None = None
    queries = torch.arange(offset, offset + n, device=device)[:, None]
    keys = torch.arange(m, device=device)[None, :]
    if causal:
        visible = (queries >= keys)[None, None]
    if band is not None:
        ahead = keys // band.segment - queries // band.segment
        near = ((ahead >= -band.before) & (ahead <= band.after))[None, None]
        visible = near if visible is None else visible & near
    if key_mask is not None:
        padding = key_mask[:, None, None, :].expand(-1, 1, n, m)
        visible = padding if visible is None else visible & padding
    if segment_ids is not None:
        own = segment_ids[:, offset : offset + n]
        same = (own[:, :, None] == segment_ids[:, None, :])[:, None]
        visible = same if visible is None else visible & same
    return visible
