"""A one-row step in Triton: products that read a weight once, with the norm before and what follows in the same kernel.

RMSNorm's factor is one number a row, so it is summed beside the product and applied at its end: no kernel waits for
another's norm. Gate and up, and the two halves that a rotation turns, are two rows of the weight in one program.

On Hopper a kernel begins while the one before it ends (programmatic dependent launch): it fetches its first weights,
which nobody writes, and only then waits for what the other has written.
"""

import re
from functools import lru_cache
from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ml_core.errors import InputError

_SLOTS = 64  # of the cache, in one step of attention
_SHARE = 512  # slots that one program of attention reads, where the bucket is longer
PLAIN, ADDED, GATED, TURNED = 0, 1, 2, 3


class Tiles(NamedTuple):
    """A program's outputs (pairs, where two rows meet), its step through the width, warps and stages.

    One stage: loads wait in registers, and many programs hide them; more: they are fetched ahead into shared memory.
    """

    columns: int
    depth: int
    warps: int
    stages: int

    @property
    def path(self) -> str:
        """Its name in the table of paths."""
        return f"triton-{self.columns}x{self.depth}w{self.warps}s{self.stages}"


CANDIDATES = tuple(
    Tiles(columns, depth, warps, stages)
    for columns, depth, warps in ((1, 2048, 4), (2, 1024, 4), (2, 2048, 8), (4, 512, 4), (4, 1024, 8), (8, 512, 8))
    for stages in (1, 4)
)  # fmt: skip
_RULE = Tiles(2, 1024, 4, 1)


def tiles_of(path: str, *, d: int) -> Tiles:
    """The tiles that a path names; "triton" means those that the rule takes."""
    if path == "triton":
        return _RULE._replace(depth=min(_RULE.depth, max(32, triton.next_power_of_2(d))))
    found = re.fullmatch(r"triton-(\d+)x(\d+)w(\d+)s(\d+)", path)
    if not found:
        raise InputError(f"path: {path!r} is no path of a one-row product")
    return Tiles(*(int(number) for number in found.groups()))


def runs_on(device: torch.device) -> bool:
    """Whether Triton can run there: on CUDA, and anywhere in its interpreter (TRITON_INTERPRET=1)."""
    return device.type == "cuda" or not isinstance(_product, triton.runtime.JITFunction)


@lru_cache
def begins_early(device: torch.device) -> bool:
    """Whether a kernel may begin before the one in front of it has ended: from Hopper on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def product(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    *,
    form: int,
    out: Tensor,
    count: int,
    tiles: Tiles,
    norm: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    rope: tuple[Tensor, Tensor, Tensor] | None = None,
    caches: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Fill `out`: `count` outputs, or pairs of them where the form is GATED or TURNED. rope: cos, sin, position."""
    cos, sin, position = rope if rope is not None else (x, x, x)
    keys, values = caches if caches is not None else (x, x)
    heads, slots, half = (keys.shape[1], keys.shape[2], keys.shape[3] // 2) if caches is not None else (1, 1, 1)
    _product[(triton.cdiv(count, tiles.columns),)](
        x, x if norm is None else norm, weight, x if scale is None else scale, x if bias is None else bias,
        x if residual is None else residual, out, cos, sin, position, keys, values,
        count, eps, heads, slots, D=x.shape[-1],
        FORM=form, NORM=norm is not None, SCALED=scale is not None, BIAS=bias is not None, HALF=half,
        BC=tiles.columns, BD=tiles.depth, STAGES=tiles.stages, num_warps=tiles.warps, **_early(x.device),
    )  # fmt: skip
    return out


def attended(q: Tensor, keys: Tensor, values: Tensor, position: Tensor, *, most: int, out: Tensor) -> Tensor:
    """Fill `out` (h k) with attention over the slots up to `position` < most: in shares where `most` is large."""
    (h, k), shares = q.shape, triton.cdiv(most, _SHARE)
    sizes = {"K": k, "BK": triton.next_power_of_2(k), "BN": _SLOTS, "SHARE": _SHARE if shares > 1 else most}
    more = {"REPEAT": h // keys.shape[1], "slots": keys.shape[2], "num_warps": 4} | _early(q.device)
    if shares == 1:
        _attend[(h, 1)](q, keys, values, position, out, out, k**-0.5, WHOLE=True, **sizes, **more)
        return out
    parts = torch.empty(h, shares, k, device=q.device, dtype=torch.float32)
    sums = torch.empty(h, shares, 2, device=q.device, dtype=torch.float32)
    _attend[(h, shares)](q, keys, values, position, parts, sums, k**-0.5, WHOLE=False, **sizes, **more)
    size = {"K": k, "BK": sizes["BK"], "BS": triton.next_power_of_2(shares)}
    _join[(h,)](parts, sums, out, shares, **size, num_warps=1, **_early(q.device))
    return out


def _early(device: torch.device) -> dict[str, Any]:
    return {"EARLY": True, "launch_pdl": True} if begins_early(device) else {"EARLY": False}


@triton.jit
@no_type_check
def _product(
    x_ptr, norm_ptr, w_ptr, scale_ptr, b_ptr, res_ptr, out_ptr, cos_ptr, sin_ptr, position_ptr, k_ptr, v_ptr,
    count, eps, heads, slots, D: tl.constexpr,
    FORM: tl.constexpr, NORM: tl.constexpr, SCALED: tl.constexpr, BIAS: tl.constexpr, HALF: tl.constexpr,
    BC: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc_launch_dependents()
    at = tl.program_id(0) * BC + tl.arange(0, BC)
    inside = at < count
    first, second = at, at
    if FORM == 2:  # GATED: gate's row, then up's
        second = at + count
    if FORM == 3:  # TURNED: the two halves of a head
        first = (at // HALF) * (2 * HALF) + at % HALF
        second = first + HALF
    place = tl.arange(0, BD)
    real = place < D
    some = inside[:, None] & real[None, :]
    row_one, row_two = w_ptr + first.to(tl.int64)[:, None] * D, w_ptr + second.to(tl.int64)[:, None] * D
    w_one = tl.load(row_one + place[None, :], mask=some, other=0)
    w_two = w_one
    if FORM >= 2:
        w_two = tl.load(row_two + place[None, :], mask=some, other=0)
    if EARLY:
        gdc_wait()  # from here on what others have written may be read
    x, squares = _scaled(x_ptr, norm_ptr, place, real, NORM)
    one, two = w_one.to(tl.float32) * x[None, :], w_two.to(tl.float32) * x[None, :]
    for start in tl.range(BD, D, BD, num_stages=STAGES):
        place = start + tl.arange(0, BD)
        real = place < D
        some = inside[:, None] & real[None, :]
        w_one = tl.load(row_one + place[None, :], mask=some, other=0)
        if FORM >= 2:
            w_two = tl.load(row_two + place[None, :], mask=some, other=0)
        x, more = _scaled(x_ptr, norm_ptr, place, real, NORM)
        squares += more
        one += w_one.to(tl.float32) * x[None, :]
        if FORM >= 2:
            two += w_two.to(tl.float32) * x[None, :]
    factor = 1.0
    if NORM:
        factor = tl.rsqrt(tl.sum(squares, axis=0) / D + eps)
    a = _ended(tl.sum(one, axis=1) * factor, scale_ptr, b_ptr, first, inside, SCALED, BIAS)
    if FORM == 0:  # PLAIN
        tl.store(out_ptr + at, a.to(out_ptr.dtype.element_ty), mask=inside)
    if FORM == 1:  # ADDED
        a += tl.load(res_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + at, a.to(out_ptr.dtype.element_ty), mask=inside)
    if FORM >= 2:
        b = _ended(tl.sum(two, axis=1) * factor, scale_ptr, b_ptr, second, inside, SCALED, BIAS)
    if FORM == 2:
        tl.store(out_ptr + at, (a / (1.0 + tl.exp(-a)) * b).to(out_ptr.dtype.element_ty), mask=inside)
    if FORM == 3:
        position = tl.load(position_ptr).to(tl.int64)
        head, place = at // HALF, at % HALF
        queries = count // HALF - 2 * heads
        turn = position * (2 * HALF) + place
        # cosines and sines of both halves are the same
        cos = tl.load(cos_ptr + turn, mask=inside, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + turn, mask=inside, other=0.0).to(tl.float32)
        left, right = a * cos - b * sin, b * cos + a * sin
        is_query, is_value = head < queries, head >= queries + heads
        to = out_ptr + head * (2 * HALF) + place
        tl.store(to, left.to(out_ptr.dtype.element_ty), mask=inside & is_query)
        tl.store(to + HALF, right.to(out_ptr.dtype.element_ty), mask=inside & is_query)
        slot = ((head - queries).to(tl.int64) * slots + position) * (2 * HALF) + place
        is_key = inside & (head >= queries) & (head < queries + heads)
        tl.store(k_ptr + slot, left.to(k_ptr.dtype.element_ty), mask=is_key)
        tl.store(k_ptr + slot + HALF, right.to(k_ptr.dtype.element_ty), mask=is_key)
        slot = ((head - queries - heads).to(tl.int64) * slots + position) * (2 * HALF) + place
        tl.store(v_ptr + slot, a.to(v_ptr.dtype.element_ty), mask=inside & is_value)
        tl.store(v_ptr + slot + HALF, b.to(v_ptr.dtype.element_ty), mask=inside & is_value)


@triton.jit
@no_type_check
def _scaled(x_ptr, norm_ptr, place, real, NORM: tl.constexpr):
    x = tl.load(x_ptr + place, mask=real, other=0.0).to(tl.float32)
    squares = x * x
    if NORM:
        x *= tl.load(norm_ptr + place, mask=real, other=0.0).to(tl.float32)
    return x, squares


@triton.jit
@no_type_check
def _ended(total, scale_ptr, b_ptr, rows, inside, SCALED: tl.constexpr, BIAS: tl.constexpr):
    if SCALED:
        total = total * tl.load(scale_ptr + rows, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        total = total + tl.load(b_ptr + rows, mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit
@no_type_check
def _attend(
    q_ptr, k_ptr, v_ptr, position_ptr, out_ptr, sums_ptr, scale, slots,
    REPEAT: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, SHARE: tl.constexpr, WHOLE: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    head, share = tl.program_id(0), tl.program_id(1)
    place = tl.arange(0, BK)
    q = tl.load(q_ptr + head * K + place, mask=place < K, other=0.0).to(tl.float32) * (scale * 1.4426950408889634)
    start_of = (head // REPEAT).to(tl.int64) * slots * K
    end = tl.minimum(tl.load(position_ptr).to(tl.int32) + 1, (share + 1) * SHARE)
    most = tl.full((), float("-inf"), dtype=tl.float32)
    total = tl.zeros((), dtype=tl.float32)
    found = tl.zeros((BK,), dtype=tl.float32)
    for start in range(share * SHARE, end, BN):
        slot = start + tl.arange(0, BN)
        some = (slot < end)[:, None] & (place < K)[None, :]
        lies = start_of + slot.to(tl.int64)[:, None] * K + place[None, :]
        keys = tl.load(k_ptr + lies, mask=some, other=0.0).to(tl.float32)
        scores = tl.where(slot < end, tl.sum(keys * q[None, :], axis=1), float("-inf"))
        higher = tl.maximum(most, tl.max(scores, axis=0))
        weights = tl.exp2(scores - higher)
        fade = tl.exp2(most - higher)
        values = tl.load(v_ptr + lies, mask=some, other=0.0).to(tl.float32)
        found = found * fade + tl.sum(weights[:, None] * values, axis=0)
        total = total * fade + tl.sum(weights, axis=0)
        most = higher
    if WHOLE:
        tl.store(out_ptr + head * K + place, (found / total).to(out_ptr.dtype.element_ty), mask=place < K)
    else:
        row = head * tl.num_programs(1) + share  # a share behind the position has nothing: -inf and 0
        tl.store(out_ptr + row * K + place, found, mask=place < K)
        tl.store(sums_ptr + row * 2, most)
        tl.store(sums_ptr + row * 2 + 1, total)


@triton.jit
@no_type_check
def _join(
    parts_ptr, sums_ptr, out_ptr, shares, K: tl.constexpr, BK: tl.constexpr, BS: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    head = tl.program_id(0)
    share, place = tl.arange(0, BS), tl.arange(0, BK)
    row = head * shares + share
    most = tl.load(sums_ptr + row * 2, mask=share < shares, other=float("-inf"))
    weight = tl.exp2(most - tl.max(most, axis=0))
    total = tl.sum(weight * tl.load(sums_ptr + row * 2 + 1, mask=share < shares, other=0.0), axis=0)
    some = (share < shares)[:, None] & (place < K)[None, :]
    parts = tl.load(parts_ptr + row[:, None] * K + place[None, :], mask=some, other=0.0)
    found = tl.sum(weight[:, None] * parts, axis=0) / total
    tl.store(out_ptr + head * K + place, found.to(out_ptr.dtype.element_ty), mask=place < K)
