"""DPE attention block by block in plain PyTorch: memory of O(n + m), forward and backward, any float dtype.

Queries are flipped, so that a block's bias is a view of the spread table that overlaps itself: entries rise with
j + (n − 1 − i).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ml_core.kernels.dpe_attention.positions import LogBuckets, Masks, collect, origin, spread

BLOCK = 256  # rows and columns of a block: 12 heads of it in fp32 are 3 MB


class _Block(NamedTuple):
    """Flipped query rows r and keys c of one block, its bias (h, r, c), and where it must not be seen, or None."""

    rows: slice
    columns: slice
    bias: Tensor
    hidden: Tensor | None


def forward(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, masks: Masks, *, scale: float, buckets: LogBuckets | None
) -> tuple[Tensor, Tensor]:
    """Output (b, h, n, k), laid out as (b, n, h, k), and the logarithm of each row's sum (b, h, n)."""
    b, h, n, size = q.shape
    wide = _wide(q.dtype)
    out = q.new_empty(b, n, h, size).transpose(1, 2)
    lse = q.new_empty(b, h, n, dtype=wide)
    flipped, bias = q.flip(2), spread(table.to(wide), n=n, m=k.shape[2], offset=masks.offset, buckets=buckets)
    for rows in _blocks(n):
        part = flipped[:, :, rows].to(wide) * scale
        top = part.new_full(part.shape[:3], -torch.inf)
        total, acc = torch.zeros_like(top), torch.zeros_like(part)
        for block in _seen(masks, rows=rows, n=n, m=k.shape[2], bias=bias):
            scores = _scores(part, k, block)
            new = torch.maximum(top, scores.amax(-1))
            base = new.masked_fill(new == -torch.inf, 0.0)
            weights = scores.sub_(base[..., None]).exp_()
            shrink = (top - base).exp()
            total = total * shrink + weights.sum(-1)
            acc = acc * shrink[..., None] + weights @ v[:, :, block.columns].to(wide)
            top = new
        empty = total == 0
        acc = acc / total.masked_fill(empty, 1.0)[..., None]
        place = slice(n - rows.stop, n - rows.start)
        out[:, :, place] = acc.flip(2).to(q.dtype)
        lse[:, :, place] = (top + total.log()).masked_fill(empty, -torch.inf).flip(2)
    return out, lse


def backward(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, out: Tensor, lse: Tensor, do: Tensor, dlse: Tensor | None,
    masks: Masks, *, scale: float, buckets: LogBuckets | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v and of the table, the last in at least fp32."""
    n, wide = q.shape[2], _wide(q.dtype)
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    dk, dv = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (k, v))
    m, offset = k.shape[2], masks.offset
    bias = spread(table.to(wide), n=n, m=m, offset=offset, buckets=buckets)
    dbias = torch.zeros_like(bias)
    delta = (out.to(wide) * do.to(wide)).sum(-1)
    if dlse is not None:
        delta = delta - dlse
    # a row that sees no key has weights of exp(−∞ − 0) = 0
    base = lse.masked_fill(lse == -torch.inf, 0.0).flip(2)
    queries, dos, deltas = q.flip(2), do.flip(2), delta.flip(2)
    for rows in _blocks(n):
        part, grad = (x[:, :, rows].to(wide) for x in (queries, dos))
        found = torch.zeros_like(part)
        for block in _seen(masks, rows=rows, n=n, m=m, bias=bias):
            at = block.columns
            weights = _scores(part * scale, k, block).sub_(base[:, :, rows, None]).exp_()
            dv[:, :, at] += weights.transpose(-1, -2) @ grad
            ds = weights.mul_((grad @ v[:, :, at].to(wide).transpose(-1, -2)).sub_(deltas[:, :, rows, None]))
            found += ds @ k[:, :, at].to(wide)
            dk[:, :, at] += ds.transpose(-1, -2) @ part
            first = rows.start + at.start + origin(n) - n + 1
            sums = _diagonal_sums(ds.sum(0))
            dbias[:, first : first + sums.shape[1]] += sums
        dq[:, :, n - rows.stop : n - rows.start] = (found * scale).flip(2).to(q.dtype)
    dtable = collect(dbias, table, n=n, m=m, offset=offset, buckets=buckets, deterministic=True)
    return dq, (dk * scale).to(k.dtype), dv.to(v.dtype), dtable


def _scores(part: Tensor, k: Tensor, block: _Block) -> Tensor:
    scores = part @ k[:, :, block.columns].to(part.dtype).transpose(-1, -2)
    scores += block.bias
    if block.hidden is not None:
        scores.masked_fill_(block.hidden, -torch.inf)
    return scores


def _seen(masks: Masks, *, rows: slice, n: int, m: int, bias: Tensor) -> Iterator[_Block]:
    """The blocks of keys of which these flipped rows see any."""
    for columns in _blocks(m):
        visible = _visible(masks, rows=rows, columns=columns, n=n, device=bias.device)
        if visible is not None and not bool(visible.any()):
            continue
        hidden = None if visible is None or bool(visible.all()) else ~visible
        start = rows.start + columns.start + origin(n) - n + 1
        size = (bias.shape[0], rows.stop - rows.start, columns.stop - columns.start)
        view = bias.as_strided(size, (bias.stride(0), 1, 1), bias.storage_offset() + start)
        yield _Block(rows, columns, view, hidden)


def _visible(masks: Masks, *, rows: slice, columns: slice, n: int, device: torch.device) -> Tensor | None:
    """(b or 1, 1, r, c), True where the flipped rows may see the keys; None where nothing is masked."""
    i = n - 1 - torch.arange(rows.start, rows.stop, device=device)
    at, j = (masks.offset + i)[:, None], torch.arange(columns.start, columns.stop, device=device)[None, :]
    visible: Tensor | None = None
    if masks.causal:
        visible = (j <= at)[None, None]
    if masks.segment:
        ahead = j // masks.segment - at // masks.segment
        near = ((ahead >= -masks.before) & (ahead <= masks.after))[None, None]
        visible = near if visible is None else visible & near
    if masks.q_ids is not None and masks.k_ids is not None:
        same = (masks.q_ids[:, i, None] == masks.k_ids[:, None, columns])[:, None]
        visible = same if visible is None else visible & same
    return visible


def _diagonal_sums(ds: Tensor) -> Tensor:
    """Sums of (h, r, c) over equal r + c: rows are set each one further to the right, and added."""
    h, rows, columns = ds.shape
    wide = torch.nn.functional.pad(ds, (0, rows)).flatten(1)[:, : rows * (rows + columns - 1)]
    return wide.view(h, rows, rows + columns - 1).sum(1)


def _blocks(length: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
