"""Attention with a bias by distance in Triton: forward, and the kernels that the backward pass is put together from.

Scores are kept times log₂ e, so that a bias costs one fused multiply-add before exp2. The bias is read from a spread
table (positions.spread), which has no clamps, no buckets and no bounds left in it. It comes by inline PTX
straight into the matrix unit's register layout (engine.md, section 2). Triton's interpreter cannot run that and takes
ordinary loads (PACK 0): tests hold both equal on a GPU.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


class Tiles(NamedTuple):
    """A program's tile (query rows × key columns), its warps and stages; ptx: how it fetches the bias.

    ahead: the next tile's scores are begun before this one's exponentials, so that the matrix unit works meanwhile
    (Shah et al. 2024, FlashAttention-3, section 3.2); forward only.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    ptx: bool = True
    ahead: bool = False


def runs_on(device: torch.device) -> bool:
    """Whether Triton can run there: on CUDA, and anywhere in its interpreter (TRITON_INTERPRET=1)."""
    return device.type == "cuda" or interpreted()


def interpreted() -> bool:
    """Whether the kernels of this process run in Triton's interpreter."""
    return not isinstance(forward_kernel, triton.runtime.JITFunction)


@triton.jit
@no_type_check
def copies_kernel(
    t_ptr, e_ptr, entries, width, first, CLAMP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A table spread over distances that fall from `first` on, times log₂ e, twice: the second one entry later.

    So a pair of neighbours that starts at an odd entry of the one starts at an even entry of the other. Without CLAMP
    the table is spread already.
    """
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    h = tl.program_id(1).to(tl.int64)
    column = x
    if CLAMP:
        column = tl.minimum(tl.maximum(first - x, -(entries // 2)), entries // 2) + entries // 2
    value = tl.load(t_ptr + h * entries + column, mask=x < width, other=0.0).to(tl.float32) * LOG2E
    tl.store(e_ptr + h * 2 * width + x, value, mask=x < width)
    tl.store(e_ptr + h * 2 * width + width + (x + 1) % width, value, mask=x < width)


def fetch_code(columns: int, *, falling: bool) -> tuple[str, str, int]:
    """PTX that fetches a thread's bias for 16 rows of a tile, its constraints, and how many elements that is.

    A thread of a warp holds, of each 8 columns, two neighbours in row r and the same two in row r + 8 (the accumulator
    of wgmma, PTX ISA 9.7.15.5.1). Along a row the entry rises by 1 a column (falls, where rows are keys), so row r + 8
    has what row r has 8 columns before: 8 · groups + 8 entries are all, and one address with constants beside it.
    """
    groups = columns // 8
    size = 4 * groups
    sign = -1 if falling else 1
    first: dict[int, int] = {}
    lines = []
    for group in range(groups):
        for half in range(2):
            at, out = 32 * sign * (group - half), 4 * group + 2 * half
            pair = (out + 1, out) if falling else (out, out + 1)
            if at in first:
                lines += [f"mov.f32 ${out + lane}, ${first[at] + lane};" for lane in range(2)]
            else:
                first[at] = out
                lines.append(f"ld.global.nc.v2.f32 {{${pair[0]}, ${pair[1]}}}, [${size}+{at}];")
    return " ".join(lines), ",".join(["=f"] * size + ["l"] * size), size


@triton.jit
@no_type_check
def bias_tile(e_ptr, x, width, FALLING: tl.constexpr, ASM: tl.constexpr, OPERANDS: tl.constexpr, PACK: tl.constexpr):
    """Entries x of a spread table; along a row of the tile x rises by one, or falls."""
    if PACK == 0:
        bias = tl.load(e_ptr + x)
    else:  # not after an early return: Triton compiles what follows one all the same, and divides by a pack of 0
        # the lower of two neighbours at an even place: in the table itself, or in its copy one entry later. e_ptr
        # points to an even entry (positions.origin), so x says which
        low = x - 1 if FALLING else x
        place = (e_ptr + low + (low & 1) * (width + 1)).to(tl.int64)
        bias = tl.inline_asm_elementwise(ASM, OPERANDS, [place], dtype=tl.float32, is_pure=True, pack=PACK)
    return bias


@triton.jit
@no_type_check
def rows_of(ptr, at, stride, limit, HEAD: tl.constexpr, D: tl.constexpr, BOUND: tl.constexpr):
    """Rows `at` (of `limit`) of a matrix with HEAD columns, padded with zeros to D; without BOUND all rows exist."""
    d = tl.arange(0, D)
    place = ptr + at[:, None].to(tl.int64) * stride + d[None, :]
    if BOUND:
        return tl.load(place, mask=(at < limit)[:, None] & (d < HEAD)[None, :], other=0.0)
    if HEAD != D:
        return tl.load(place, mask=(d < HEAD)[None, :], other=0.0)
    return tl.load(place)


@triton.jit
@no_type_check
def visible_tile(
    i, j, n, m, offset, qid_ptr, kid_ptr,
    CAUSAL: tl.constexpr, IDS: tl.constexpr, SEGMENT: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
):  # fmt: skip
    """Which keys j the queries i may see; i and j are broadcast against each other."""
    seen = (i < n) & (j < m)
    at = offset + i
    if CAUSAL:
        seen = seen & (j <= at)
    if SEGMENT > 0:
        ahead = j // SEGMENT - at // SEGMENT
        seen = seen & (ahead >= -BEFORE) & (ahead <= AFTER)
    if IDS:
        own = tl.load(qid_ptr + i, mask=i < n, other=0)
        seen = seen & (own == tl.load(kid_ptr + j, mask=j < m, other=0))
    return seen


@triton.jit
@no_type_check
def key_range(
    start, n, m, offset, bounds_ptr, CAUSAL: tl.constexpr, IDS: tl.constexpr, SEGMENT: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, ALL_MASKED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Keys lo to hi are all that the query rows from `start` on can see; of those before `full`, each sees each."""
    first = offset + start
    last = offset + tl.minimum(start + BM, n) - 1
    lo = 0
    hi = m
    if CAUSAL:
        hi = tl.minimum(hi, last + 1)
    if SEGMENT > 0:
        lo = tl.maximum(lo, (first // SEGMENT - BEFORE) * SEGMENT)
        hi = tl.minimum(hi, (last // SEGMENT + AFTER + 1) * SEGMENT)
    if IDS:
        lo = tl.maximum(lo, tl.load(bounds_ptr))
        hi = tl.minimum(hi, tl.load(bounds_ptr + 1))
    lo = lo // BN * BN
    hi = tl.maximum(hi, lo)
    full = tl.minimum(hi, m) // BN * BN
    if CAUSAL:
        full = tl.minimum(full, (first + 1) // BN * BN)
    if ALL_MASKED:
        full = lo
    return lo, tl.minimum(tl.maximum(full, lo), hi), hi


@triton.jit
@no_type_check
def raw_scores(
    j0, q, k_ptr, kn, m, MASK: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """q kᵀ of the keys from j0 on."""
    k = rows_of(k_ptr, j0 + tl.arange(0, BN), kn, m, HEAD, D, MASK)
    return tl.dot(q, tl.trans(k), input_precision="ieee")


@triton.jit
@no_type_check
def fold(s, v, acc, top, total, MASK: tl.constexpr):
    """Scores s more into running maximum, sum and weighted values (Milakov and Gimelshein 2018); MASK: some are −∞."""
    new = tl.maximum(top, tl.max(s, 1))
    base = tl.where(new == float("-inf"), 0.0, new) if MASK else new
    p = tl.exp2(s - base[:, None])
    shrink = tl.exp2(top - base)
    total = total * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, new, total


@triton.jit
@no_type_check
def forward_step(
    j0, s, i, acc, top, total, v_ptr, vn, e_ptr, width, n, m, offset, scale, qid_ptr, kid_ptr,
    MASK: tl.constexpr, CAUSAL: tl.constexpr, IDS: tl.constexpr, SEGMENT: tl.constexpr, BEFORE: tl.constexpr,
    AFTER: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, ASM: tl.constexpr,
    OPERANDS: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """A tile of raw scores more: scale, bias, mask, values."""
    j = j0 + tl.arange(0, BN)
    s = s * scale
    s += bias_tile(e_ptr, j[None, :] - i[:, None], width, False, ASM, OPERANDS, PACK)
    if MASK:
        seen = visible_tile(i[:, None], j[None, :], n, m, offset, qid_ptr, kid_ptr, CAUSAL, IDS, SEGMENT, BEFORE, AFTER)
        s = tl.where(seen, s, float("-inf"))
    v = rows_of(v_ptr, j, vn, m, HEAD, D, MASK)
    return fold(s, v, acc, top, total, MASK)


@triton.jit
@no_type_check
def forward_kernel(
    q_ptr, k_ptr, v_ptr, e_ptr, qid_ptr, kid_ptr, bounds_ptr, pk_ptr, pv_ptr, pb_ptr, o_ptr, lse_ptr,
    n, m, extra, heads, offset, width, origin, scale,
    qb, qh, qn, kb, kh, kn, vb, vh, vn, ob, oh, on,
    CAUSAL: tl.constexpr, IDS: tl.constexpr, SEGMENT: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
    ALL_MASKED: tl.constexpr, EVEN: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, ASM: tl.constexpr, OPERANDS: tl.constexpr, PACK: tl.constexpr,
    AHEAD: tl.constexpr, PREFIX: tl.constexpr,
):  # fmt: skip
    """A tile of query rows against all keys that it can see; PREFIX: and `extra` keys with a bias by segment."""
    block = tl.program_id(0)
    if CAUSAL:
        block = tl.num_programs(0) - 1 - block  # those with the most keys first
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = tl.program_id(1) % heads
    i = block * BM + tl.arange(0, BM)
    q_ptr += b * qb + h * qh
    k_ptr += b * kb + h * kh
    v_ptr += b * vb + h * vh
    e_ptr += h * 2 * width + origin
    qid_ptr += b * n
    kid_ptr += b * m
    bounds_ptr += (b * tl.num_programs(0) + block) * 2
    lo, full, hi = key_range(
        block * BM, n, m, offset, bounds_ptr, CAUSAL, IDS, SEGMENT, BEFORE, AFTER, ALL_MASKED, BM, BN
    )
    q = rows_of(q_ptr, i, qn, n, HEAD, D, not EVEN)
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    if PREFIX:
        # the tile lies in one segment, whose bias on the extra keys is −∞ where they are not seen
        head = tl.program_id(1).to(tl.int64)
        pb_ptr += (head * tl.cdiv(n, SEGMENT) + block * BM // SEGMENT) * extra
        for j0 in range(0, extra, BN):
            j = j0 + tl.arange(0, BN)
            s = raw_scores(j0, q, pk_ptr + head * extra * HEAD, HEAD, extra, True, HEAD, D, BN) * scale
            s += tl.load(pb_ptr + j, mask=j < extra, other=float("-inf"))[None, :]
            v = rows_of(pv_ptr + head * extra * HEAD, j, HEAD, extra, HEAD, D, True)
            acc, top, total = fold(s, v, acc, top, total, True)
    if AHEAD:
        # the tile begun last is never used: it reads the last one once more
        final = tl.maximum(full - BN, lo)
        ahead = raw_scores(tl.minimum(lo, final), q, k_ptr, kn, m, True, HEAD, D, BN)
        for j0 in range(lo, full, BN):
            s = ahead
            ahead = raw_scores(tl.minimum(j0 + BN, final), q, k_ptr, kn, m, False, HEAD, D, BN)
            acc, top, total = forward_step(
                j0, s, i, acc, top, total, v_ptr, vn, e_ptr, width, n, m, offset, scale, qid_ptr, kid_ptr,
                False, CAUSAL, IDS, SEGMENT, BEFORE, AFTER, HEAD, D, BN, ASM, OPERANDS, PACK,
            )  # fmt: skip
    else:
        for j0 in range(lo, full, BN):
            s = raw_scores(j0, q, k_ptr, kn, m, False, HEAD, D, BN)
            acc, top, total = forward_step(
                j0, s, i, acc, top, total, v_ptr, vn, e_ptr, width, n, m, offset, scale, qid_ptr, kid_ptr,
                False, CAUSAL, IDS, SEGMENT, BEFORE, AFTER, HEAD, D, BN, ASM, OPERANDS, PACK,
            )  # fmt: skip
    for j0 in range(full, hi, BN):
        s = raw_scores(j0, q, k_ptr, kn, m, True, HEAD, D, BN)
        acc, top, total = forward_step(
            j0, s, i, acc, top, total, v_ptr, vn, e_ptr, width, n, m, offset, scale, qid_ptr, kid_ptr,
            True, CAUSAL, IDS, SEGMENT, BEFORE, AFTER, HEAD, D, BN, ASM, OPERANDS, PACK,
        )  # fmt: skip
    empty = total == 0.0
    acc = acc / tl.where(empty, 1.0, total)[:, None]
    lse = tl.where(empty, float("-inf"), (top + tl.log2(tl.where(empty, 1.0, total))) * LN2)
    d = tl.arange(0, D)
    place = o_ptr + b * ob + h * oh + i[:, None].to(tl.int64) * on + d[None, :]
    tl.store(place, acc.to(o_ptr.dtype.element_ty), mask=(i < n)[:, None] & (d < HEAD)[None, :])
    tl.store(lse_ptr + tl.program_id(1).to(tl.int64) * n + i, lse, mask=i < n)
