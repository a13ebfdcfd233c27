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
    """Entries of a spread table: one for each distance, the margins, and one more where that makes it even."""
    length = n + m - 1 + 2 * MARGIN
    return length + length % 2


def spread(
    table: Float[Tensor, "h t"], *, n: int, m: int, offset: int, buckets: LogBuckets | None, deterministic: bool = False
) -> Float[Tensor, "h l"]:
    """The bias in the order in which a kernel reads it: query i and key j have entry j − i + n − 1 + MARGIN.

    Clamps, buckets and the offset are dealt with here, once, in memory of O(n + m). deterministic: of its gradient.
    """
    length = spread_length(n=n, m=m)
    distance = offset + n - 1 + MARGIN - torch.arange(length, device=table.device)
    columns = table_entries(distance, reach=table.shape[1] // 2, buckets=buckets)
    if deterministic:
        spread_table: Tensor = _Spread.apply(table, columns)
        return spread_table
    return table.index_select(1, columns)


class _Spread(torch.autograd.Function):
    """index_select whose gradient adds in a fixed order: distances that share an entry lie side by side."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, table: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(columns)
        ctx.entries = table.shape[1]  # type: ignore[attr-defined]
        return table.index_select(1, columns)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        (columns,) = ctx.saved_tensors  # type: ignore[attr-defined]
        entries = ctx.entries  # type: ignore[attr-defined]
        # columns fall along a spread table, so flipped they rise: entry t's share is one run
        runs = (columns[None, :] == torch.arange(entries, device=columns.device)[:, None]).sum(1)
        rows = gradients[0].flip(1).t().contiguous()
        return torch.segment_reduce(rows, "sum", lengths=runs, axis=0).t(), None


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
