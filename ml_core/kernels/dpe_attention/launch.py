"""Running the Triton kernels: which tiles, which plan for the backward pass, what memory they get."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ml_core.errors import InputError
from ml_core.kernels.dpe_attention import backward_kernel as back
from ml_core.kernels.dpe_attention.kernel import LOG2E, Tiles, copies_kernel, fetch_code, forward_kernel, interpreted
from ml_core.kernels.dpe_attention.positions import (
    MASKED,
    LogBuckets,
    Masks,
    collect,
    origin,
    spread,
    spread_length,
)

TILE_BYTES = 64 << 20  # tiles of dS kept at once; more heads than that are done one after the other
_PADDED = 128  # rows of a tile at most: constants of rows are padded to whole tiles
_PROGRAMS = 528  # programs that fill a GPU: four for each of an H100's 132 multiprocessors


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a backward pass is put together, and its tiles.

    ordered: one kernel for keys and values, one for queries, one for the table's block diagonals, and every sum has one
    order. Else the first one adds the others' shares by atomics.
    """

    ordered: bool
    keys: Tiles
    queries: Tiles
    diagonals: Tiles


# what the benchmark tunes over; the first of each is taken unless it found another
FORWARD = (
    Tiles(128, 64, 4, 3),
    Tiles(128, 128, 8, 3, ahead=True),
    Tiles(64, 64, 4, 3, ahead=True),
    Tiles(64, 128, 4, 2, ahead=True),
    Tiles(128, 128, 8, 2),
    Tiles(128, 64, 8, 3),
    Tiles(64, 64, 4, 4, ahead=True),
    Tiles(64, 128, 4, 2),
)
KEYS = (
    Tiles(64, 64, 4, 2),
    Tiles(64, 128, 8, 2),
    Tiles(64, 64, 4, 1),
    Tiles(64, 128, 8, 1),
    Tiles(32, 64, 4, 3),
    Tiles(128, 64, 4, 1),
)
_SQUARE = Tiles(64, 64, 4, 2)  # block diagonals want square tiles
_PREFERRED = {"forward": FORWARD[0], "keys": KEYS[0]}


def prefer(*, forward: Tiles, keys: Tiles) -> None:
    """Take these tiles in the place of the first candidates from now on, in this process."""
    _PREFERRED.update(forward=forward, keys=keys)


def forward_tiles(q: Tensor) -> Tiles:
    """The forward pass's tiles, by rule."""
    if interpreted():
        return Tiles(64, 64, 4, 1, ptx=False)
    if q.dtype == torch.float32:
        return Tiles(64, 32, 4, 2, ptx=False)
    if q.shape[2] <= 16:
        return Tiles(16, 64, 4, 3, ptx=False)
    return _fitting(_PREFERRED["forward"], q)


def backward_plan(q: Tensor, *, deterministic: bool) -> Plan:
    """The backward pass's plan, by rule."""
    if interpreted():
        keys = square = Tiles(64, 64, 4, 1, ptx=False)
    elif q.dtype == torch.float32:
        keys = square = Tiles(32, 32, 4, 1, ptx=False)
    else:
        keys, square = _fitting(_PREFERRED["keys"], q), _fitting(_SQUARE, q)
    return Plan(ordered=deterministic, keys=keys, queries=square, diagonals=square)


def _fitting(tiles: Tiles, q: Tensor) -> Tiles:
    """The tiles, less deep for wide heads; with PTX where the accumulators lie as it presumes, which is Hopper."""
    stages = tiles.stages if q.shape[3] <= 64 else max(1, tiles.stages - 1)
    return tiles._replace(stages=stages, ptx=torch.cuda.get_device_capability(q.device) == (9, 0))


def forward(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, masks: Masks, *, scale: float,
    buckets: LogBuckets | None = None, tiles: Tiles | None = None,
    prefix: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output (b, h, n, k), laid out as (b, n, h, k), and the logarithm of each row's sum (b, h, n), fp32.

    prefix: more keys and values (b, h, e, k), and the bias (b, h, c, e) of each segment's queries on them.
    """
    b, h, n, size = q.shape
    m = k.shape[2]
    out = q.new_empty(b, n, h, size).transpose(1, 2)
    lse = q.new_empty(b, h, n, dtype=torch.float32)
    if out.numel() == 0:
        return out, lse
    if m == 0:
        return out.zero_(), lse.fill_(-torch.inf)
    tiles = tiles or forward_tiles(q)
    q, k, v = (_rows(x) for x in (q, k, v))
    if prefix is not None and (not masks.segment or masks.segment % tiles.rows or masks.offset):
        raise InputError(f"segment: tiles of {tiles.rows} rows do not lie in one segment of {masks.segment} each")
    extra_k, extra_v, extra_bias = prefix or (q, q, q)
    if prefix is not None:
        extra_k, extra_v = extra_k.contiguous(), extra_v.contiguous()
        extra_bias = (extra_bias.float() * LOG2E.value).contiguous()
    copies = _copies(table, n=n, m=m, offset=masks.offset, buckets=buckets)
    bounds = _bounds(masks, rows=tiles.rows, columns=tiles.columns)
    forward_kernel[(_ceil(n, tiles.rows), b * h)](
        q, k, v, copies, *_ids(masks, like=q), _or(bounds, q), extra_k, extra_v, extra_bias, out, lse,
        n, m, extra_k.shape[2], h, masks.offset, copies.shape[2], origin(n), scale * LOG2E.value,
        *_strides(q, k, v, out), **_mask_options(masks, tiles=tiles), EVEN=n % tiles.rows == 0, AHEAD=tiles.ahead,
        PREFIX=prefix is not None, **_head_options(size), **tile_options(tiles),
    )  # fmt: skip
    return out, lse


def backward(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, out: Tensor, lse: Tensor, do: Tensor, dlse: Tensor | None,
    masks: Masks, *, scale: float, plan: Plan, buckets: LogBuckets | None = None, with_table: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v and, where it is wanted, of the table in fp32 (else zeros)."""
    copies = _copies(table, n=q.shape[2], m=k.shape[2], offset=masks.offset, buckets=buckets)
    call = _Backward(q, k, v, copies, out, lse, do, dlse, masks, scale=scale, plan=plan)
    dq, dk, dv, spread_out = call.run(table=with_table)
    if not with_table:
        return dq, dk, dv, torch.zeros_like(table, dtype=torch.float32)
    dtable = collect(
        spread_out, table, n=call.n, m=call.m, offset=masks.offset, buckets=buckets, deterministic=plan.ordered
    )
    return dq, dk, dv, dtable


class _Backward:
    """One backward pass: its inputs, and what all its kernels are given."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, copies: Tensor, out: Tensor, lse: Tensor, do: Tensor,
        dlse: Tensor | None, masks: Masks, *, scale: float, plan: Plan,
    ) -> None:  # fmt: skip
        self.q, self.k, self.v, self.do = (_rows(x) for x in (q, k, v, do))
        self.copies, self.lse, self.masks, self.scale, self.plan = copies, lse, masks, scale, plan
        self.b, self.h, self.n, self.size = q.shape
        self.m = k.shape[2]
        self.padded = _ceil(self.n, _PADDED) * _PADDED
        self.rows = lse.new_empty(self.b, self.h, 2, self.padded)
        out = _rows(out)
        if lse.numel():
            back.rows_kernel[(self.padded // 64, self.b * self.h)](
                out, self.do, lse, _or(None if dlse is None else dlse.contiguous(), lse), self.rows, self.n,
                self.padded, self.h, *_strides(out, self.do), WITH_LSE=dlse is not None,
                **_head_options(self.size), BM=64,
            )  # fmt: skip

    def run(self, *, table: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dk, dv = (self.q.new_empty(self.b, self.h, self.m, self.size) for _ in range(2))
        dbias = self.copies.new_zeros(self.h, self.copies.shape[2])
        if self.lse.numel() == 0 or self.m == 0:
            return torch.zeros_like(self.q), dk.zero_(), dv.zero_(), dbias
        shape = (self.b, self.h, self.n, self.size)
        if self.plan.ordered:
            dq = self.q.new_empty(shape)
            self._keys(dk, dv, dq=None, copies=None)
            self._queries(dq)
            if table:
                self._diagonals(dbias)
            return dq, dk, dv, dbias
        sums = self.lse.new_zeros(shape)
        copies = torch.zeros_like(self.copies) if table else None
        self._keys(dk, dv, dq=sums, copies=copies)
        if copies is not None:
            dbias = copies[:, 0] + copies[:, 1].roll(-1, 1)
        return torch.mul(sums, self.scale, out=torch.empty_like(sums, dtype=self.q.dtype)), dk, dv, dbias

    def _keys(self, dk: Tensor, dv: Tensor, *, dq: Tensor | None, copies: Tensor | None) -> None:
        tiles = self.plan.keys
        bounds = _bounds(self.masks, rows=tiles.rows, columns=tiles.columns, of_keys=True)
        code, operands, _ = back.add_code(tiles.rows)
        back.keys_kernel[(_ceil(self.m, tiles.columns), self.b * self.h)](
            *self._inputs(), _or(bounds, self.q), self.do, self.rows, _or(dq, self.q), dk, dv, _or(copies, self.q),
            *self._sizes(), *_strides(self.q, self.k, self.v, self.do), **_mask_options(self.masks, tiles=tiles),
            EVEN=self.n % tiles.rows == 0, KEYS_EVEN=self.m % tiles.columns == 0,
            DQ=dq is not None, DT=copies is not None, ADD=code, ADD_OPERANDS=operands,
            **_head_options(self.size), **tile_options(tiles, falling=True),
        )  # fmt: skip

    def _queries(self, dq: Tensor) -> None:
        tiles = self.plan.queries
        bounds = _bounds(self.masks, rows=tiles.rows, columns=tiles.columns)
        back.queries_kernel[(_ceil(self.n, tiles.rows), self.b * self.h)](
            *self._inputs(), _or(bounds, self.q), self.do, self.rows, dq, *self._sizes(),
            *_strides(self.q, self.k, self.v, self.do), **_mask_options(self.masks, tiles=tiles),
            EVEN=self.n % tiles.rows == 0, **_head_options(self.size), **tile_options(tiles),
        )  # fmt: skip

    def _diagonals(self, dbias: Tensor) -> None:
        tiles, masks = self.plan.diagonals, self.masks
        if tiles.rows != tiles.columns:
            raise InputError(f"plan: {tiles.rows} × {tiles.columns} tiles have no block diagonals")
        size = tiles.rows
        count = _ceil(self.n, size) + _ceil(self.m, size) - 1
        parts = max(1, min(self.b, _PROGRAMS // (count * self.h)))
        heads = max(1, min(self.h, TILE_BYTES // (parts * count * size * size * 4)))
        settings = _mask_options(masks, tiles=tiles) | tile_options(tiles) | _head_options(self.size)
        for name in ("ALL_MASKED", "BM", "BN"):
            del settings[name]
        free = not (masks.causal or masks.segment or masks.q_ids is not None)
        settings |= {"MASK": not (free and self.n % size == 0 and self.m % size == 0), "PARTS": parts, "B": size}
        kept = self.lse.new_empty(heads, parts, count, size, size)
        n, m, padded, h, *rest, _ = self._sizes()
        for head0 in range(0, self.h, heads):
            here = min(heads, self.h - head0)
            back.diagonals_kernel[(count, here, parts)](
                *self._inputs(), self.do, self.rows, kept, n, m, padded, self.b, h, head0, *rest,
                *_strides(self.q, self.k, self.v, self.do), **settings,
            )  # fmt: skip
            self._add_sums(kept, dbias[head0 : head0 + here], parts=parts, size=size)

    def _add_sums(self, kept: Tensor, dbias: Tensor, *, parts: int, size: int) -> None:
        """Sum the tiles of dS along their diagonals, which each lie in two neighbouring blocks' tiles."""
        heads = dbias.shape[0]
        rows, columns = _ceil(self.n, size), _ceil(self.m, size)
        count = rows + columns - 1
        sums = kept.new_empty(heads, count, 2, size)
        back.sums_kernel[(count, heads)](kept, sums, count, PARTS=parts, B=size)
        start = origin(self.n) + 1 - rows * size  # of block 0's first entry: key less query is 1 − rows · size
        part = dbias[:, start : start + (count + 1) * size].unflatten(1, (count + 1, size))
        part[:, :count] += sums[:, :, 0]
        part[:, 1:] += sums[:, :, 1]

    def _inputs(self) -> tuple[Tensor, ...]:
        return (self.q, self.k, self.v, self.copies, *_ids(self.masks, like=self.q))

    def _sizes(self) -> tuple[Any, ...]:
        """n, m, padded, heads, offset, width, origin, scale of the scores in log₂, factor of dQ and dK."""
        return (
            self.n, self.m, self.padded, self.h, self.masks.offset, self.copies.shape[2], origin(self.n),
            self.scale * LOG2E.value, self.scale,
        )  # fmt: skip


def _copies(table: Tensor, *, n: int, m: int, offset: int, buckets: LogBuckets | None) -> Tensor:
    """The table as kernels read it, (h, 2, l) in fp32; by one kernel, unless its distances are bucketed."""
    length = spread_length(n=n, m=m)
    copies = torch.empty(table.shape[0], 2, length, dtype=torch.float32, device=table.device)
    clamped = buckets is None
    given = table if clamped else spread(table, n=n, m=m, offset=offset, buckets=buckets)
    copies_kernel[(_ceil(length, 1024), table.shape[0])](
        given.contiguous(), copies, given.shape[1], length, offset + origin(n), CLAMP=clamped, BLOCK=1024
    )
    return copies


def _bounds(masks: Masks, *, rows: int, columns: int, of_keys: bool = False) -> Tensor | None:
    """For each block of queries the first key, and the end, of the key blocks that share an id with it, (b, blocks, 2).

    of_keys: for each block of keys, the queries. Blocks are compared by their ids' range: sorted ids leave few.
    """
    if masks.q_ids is None or masks.k_ids is None:
        return None
    low, high = _extremes(masks.q_ids, size=rows)
    key_low, key_high = _extremes(masks.k_ids, size=columns)
    met = (low[:, :, None] <= key_high[:, None, :]) & (key_low[:, None, :] <= high[:, :, None])
    met, step = (met.transpose(1, 2), rows) if of_keys else (met, columns)
    at = torch.arange(met.shape[2], device=met.device, dtype=torch.int32)
    first = torch.where(met, at, met.shape[2]).amin(2)
    end = torch.where(met, at + 1, 0).amax(2)
    return torch.stack([torch.minimum(first, end) * step, end * step], dim=2).to(torch.int32).contiguous()


def _extremes(ids: Tensor, *, size: int) -> tuple[Tensor, Tensor]:
    blocks = _ceil(ids.shape[1], size)
    padded = torch.nn.functional.pad(ids, (0, blocks * size - ids.shape[1]), value=MASKED)
    parts = padded.view(ids.shape[0], blocks, size)
    real = parts != MASKED
    low = torch.where(real, parts, torch.iinfo(torch.int32).max).amin(2)
    return low, torch.where(real, parts, MASKED).amax(2)


def _ids(masks: Masks, *, like: Tensor) -> tuple[Tensor, Tensor]:
    return _or(masks.q_ids, like), _or(masks.k_ids, like)


def _mask_options(masks: Masks, *, tiles: Tiles) -> dict[str, Any]:
    rough = bool(masks.segment) and any(x % s for s in (tiles.rows, tiles.columns) for x in (masks.segment,))
    rough = rough or (bool(masks.segment) and masks.offset % tiles.rows != 0)
    ids = masks.q_ids is not None
    return {
        "CAUSAL": masks.causal, "IDS": ids, "SEGMENT": masks.segment, "BEFORE": masks.before, "AFTER": masks.after,
        "ALL_MASKED": ids or rough,
    }  # fmt: skip


def _head_options(size: int) -> dict[str, int]:
    return {"HEAD": size, "D": max(16, 1 << (size - 1).bit_length())}


def tile_options(tiles: Tiles, *, falling: bool = False) -> dict[str, Any]:
    """Launch arguments of tiles. falling: the tile's rows are keys."""
    ptx = tiles.ptx and not interpreted()
    if ptx and 16 * tiles.warps > (tiles.columns if falling else tiles.rows):
        # beyond that, warps would share rows, and no thread would hold all that the PTX presumes
        raise InputError(f"tiles: {tiles.warps} warps are more than the rows' sixteens of {tiles.rows}x{tiles.columns}")
    code, operands, size = fetch_code(tiles.rows if falling else tiles.columns, falling=falling)
    return {
        "BM": tiles.rows, "BN": tiles.columns, "num_warps": tiles.warps, "num_stages": tiles.stages,
        "ASM": code if ptx else "", "OPERANDS": operands if ptx else "", "PACK": size if ptx else 0,
    }  # fmt: skip


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:3]]


def _or(tensor: Tensor | None, like: Tensor) -> Tensor:
    """A pointer is wanted even where nothing is read."""
    return like if tensor is None else tensor
