"""Triton kernels of the backward pass: gradients of keys and values, of queries, and of the table by block diagonals.

With P the weights, dP = dO vᵀ and δ = rowsum(dO ∘ O): dS = P ∘ (dP − δ) (Dao 2023, FlashAttention-2, algorithm 2). The
table's gradient at a distance is the sum of dS along a diagonal. By atomics: a thread's 32 values of a tile lie on 18
diagonals and are summed in its registers first. In one order: all tiles at one block offset share their diagonals, so
they are summed elementwise, and along diagonals once at the end.
"""

from typing import no_type_check

import triton
import triton.language as tl

from ml_core.kernels.dpe_attention.kernel import LOG2E, bias_tile, key_range, rows_of, visible_tile


def add_code(columns: int) -> tuple[str, str, int]:
    """PTX that adds a thread's dS of 16 key rows to the table's gradient, its constraints, and how many elements.

    The registers are those of kernel.fetch_code with `falling`: values that share a distance are added first.
    """
    groups = columns // 8
    size = 4 * groups
    # operands: a result of four bytes for each four elements, then size values, then size addresses
    values, address = size // 4, size // 4 + size
    pairs: dict[int, list[int]] = {}
    for group in range(groups):
        for half in range(2):
            pairs.setdefault(32 * (half - group), []).append(values + 4 * group + 2 * half)
    lines = ["{ .reg .f32 a, b;"]
    for at, found in pairs.items():
        upper, lower = f"${found[0]}", f"${found[0] + 1}"  # the first of two neighbours has the larger entry
        if len(found) == 2:
            lines += [f"add.f32 a, {lower}, ${found[1] + 1};", f"add.f32 b, {upper}, ${found[1]};"]
            upper, lower = "b", "a"
        lines.append(f"red.relaxed.gpu.global.add.v2.f32 [${address}+{at}], {{{lower}, {upper}}};")
    lines += [*(f"mov.u32 ${out}, 0;" for out in range(values)), "}"]
    return " ".join(lines), ",".join(["=r"] * values + ["f"] * size + ["l"] * size), size


@triton.jit
@no_type_check
def rows_kernel(
    o_ptr, do_ptr, lse_ptr, dlse_ptr, rows_ptr, n, padded, heads, ob, oh, on, gb, gh, gn,
    WITH_LSE: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Each row's log₂ of its sum, and δ = rowsum(dO ∘ O) less the gradient of the logarithm, which moves its scores.

    Rows that see no key, and those beyond n up to `padded`, get a sum of ∞: all their weights are 0.
    """
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = tl.program_id(1) % heads
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    o = rows_of(o_ptr + b * ob + h * oh, i, on, n, HEAD, D, True).to(tl.float32)
    do = rows_of(do_ptr + b * gb + h * gh, i, gn, n, HEAD, D, True).to(tl.float32)
    delta = tl.sum(o * do, 1)
    row = tl.program_id(1).to(tl.int64)
    if WITH_LSE:
        delta -= tl.load(dlse_ptr + row * n + i, mask=i < n, other=0.0)
    lse = tl.load(lse_ptr + row * n + i, mask=i < n, other=float("-inf"))
    rows_ptr += row * 2 * padded + i
    tl.store(rows_ptr, tl.where(lse == float("-inf"), float("inf"), lse * LOG2E), mask=i < padded)
    tl.store(rows_ptr + padded, delta, mask=i < padded)


@triton.jit
@no_type_check
def queries_step(
    j0, q, do, i, lse, delta, k_ptr, v_ptr, kn, vn, e_ptr, width, n, m, offset, scale, qid_ptr, kid_ptr,
    MASK: tl.constexpr, CAUSAL: tl.constexpr, IDS: tl.constexpr, SEGMENT: tl.constexpr, BEFORE: tl.constexpr,
    AFTER: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, ASM: tl.constexpr,
    OPERANDS: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """dS of a tile, rows are queries; returned with its keys, to be multiplied or summed."""
    j = j0 + tl.arange(0, BN)
    k = rows_of(k_ptr, j, kn, m, HEAD, D, MASK)
    v = rows_of(v_ptr, j, vn, m, HEAD, D, MASK)
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    s += bias_tile(e_ptr, j[None, :] - i[:, None], width, False, ASM, OPERANDS, PACK)
    p = tl.exp2(s - lse[:, None])
    if MASK:
        seen = visible_tile(i[:, None], j[None, :], n, m, offset, qid_ptr, kid_ptr, CAUSAL, IDS, SEGMENT, BEFORE, AFTER)
        p = tl.where(seen, p, 0.0)
    ds = p * (tl.dot(do, tl.trans(v), input_precision="ieee") - delta[:, None])
    return ds, k


@triton.jit
@no_type_check
def queries_kernel(
    q_ptr, k_ptr, v_ptr, e_ptr, qid_ptr, kid_ptr, bounds_ptr, do_ptr, rows_ptr, dq_ptr,
    n, m, padded, heads, offset, width, origin, scale, factor,
    qb, qh, qn, kb, kh, kn, vb, vh, vn, gb, gh, gn,
    CAUSAL: tl.constexpr, IDS: tl.constexpr, SEGMENT: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
    ALL_MASKED: tl.constexpr, EVEN: tl.constexpr, HEAD: tl.constexpr, D: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, ASM: tl.constexpr, OPERANDS: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """dQ of a tile of query rows: each program owns its rows, so that sums have one order."""
    block = tl.program_id(0)
    if CAUSAL:
        block = tl.num_programs(0) - 1 - block
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = tl.program_id(1) % heads
    i = block * BM + tl.arange(0, BM)
    k_ptr += b * kb + h * kh
    v_ptr += b * vb + h * vh
    e_ptr += h * 2 * width + origin
    qid_ptr += b * n
    kid_ptr += b * m
    bounds_ptr += (b * tl.num_programs(0) + block) * 2
    row = tl.program_id(1).to(tl.int64)
    lo, full, hi = key_range(
        block * BM, n, m, offset, bounds_ptr, CAUSAL, IDS, SEGMENT, BEFORE, AFTER, ALL_MASKED, BM, BN
    )
    q = rows_of(q_ptr + b * qb + h * qh, i, qn, n, HEAD, D, not EVEN)
    do = rows_of(do_ptr + b * gb + h * gh, i, gn, n, HEAD, D, not EVEN)
    lse = tl.load(rows_ptr + row * 2 * padded + i)
    delta = tl.load(rows_ptr + row * 2 * padded + padded + i)
    acc = tl.zeros((BM, D), tl.float32)
    for j0 in range(lo, full, BN):
        ds, k = queries_step(
            j0, q, do, i, lse, delta, k_ptr, v_ptr, kn, vn, e_ptr, width, n, m, offset, scale, qid_ptr, kid_ptr,
            False, CAUSAL, IDS, SEGMENT, BEFORE, AFTER, HEAD, D, BN, ASM, OPERANDS, PACK,
        )  # fmt: skip
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision="ieee")
    for j0 in range(full, hi, BN):
        ds, k = queries_step(
            j0, q, do, i, lse, delta, k_ptr, v_ptr, kn, vn, e_ptr, width, n, m, offset, scale, qid_ptr, kid_ptr,
            True, CAUSAL, IDS, SEGMENT, BEFORE, AFTER, HEAD, D, BN, ASM, OPERANDS, PACK,
        )  # fmt: skip
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision="ieee")
    d = tl.arange(0, D)
    place = dq_ptr + (row * n + i[:, None]) * HEAD + d[None, :]
    tl.store(place, (acc * factor).to(dq_ptr.dtype.element_ty), mask=(i < n)[:, None] & (d < HEAD)[None, :])


@triton.jit
@no_type_check
def query_range(
    start, n, m, offset, bounds_ptr, CAUSAL: tl.constexpr, IDS: tl.constexpr, SEGMENT: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, ALL_MASKED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Query rows lo to hi are all that can see the keys from `start` on; of those from `full` on, each sees each."""
    last = tl.minimum(start + BN, m) - 1
    lo = 0
    hi = n
    if CAUSAL:
        lo = tl.maximum(lo, start - offset)
    if SEGMENT > 0:
        lo = tl.maximum(lo, (start // SEGMENT - AFTER) * SEGMENT - offset)
        hi = tl.minimum(hi, (last // SEGMENT + BEFORE + 1) * SEGMENT - offset)
    if IDS:
        lo = tl.maximum(lo, tl.load(bounds_ptr))
        hi = tl.minimum(hi, tl.load(bounds_ptr + 1))
    lo = lo // BM * BM
    hi = tl.maximum(hi, lo)
    full = lo
    if CAUSAL:
        full = tl.maximum(full, (start + BN - 1 - offset + BM - 1) // BM * BM)
    if ALL_MASKED:
        full = hi
    return lo, tl.minimum(full, hi), hi


@triton.jit
@no_type_check
def add_tile(de_ptr, x, ds, width, ADD: tl.constexpr, ADD_OPERANDS: tl.constexpr, PACK: tl.constexpr):
    """Add dS (rows are keys) at entries x of the table's gradient, two copies of it as in kernel.copies_kernel."""
    if PACK == 0:
        tl.atomic_add(de_ptr + x, ds, sem="relaxed")
    else:
        low = x - 1
        place = (de_ptr + low + (low & 1) * (width + 1)).to(tl.int64)
        tl.inline_asm_elementwise(ADD, ADD_OPERANDS, [ds, place], dtype=tl.int8, is_pure=False, pack=PACK)


@triton.jit
@no_type_check
def keys_step(
    i0, k, v, j, dk, dv, q_ptr, do_ptr, qn, gn, e_ptr, rows_ptr, padded, dq_ptr, de_ptr, width, n, m, offset,
    scale, qid_ptr, kid_ptr,
    MASK: tl.constexpr, CAUSAL: tl.constexpr, IDS: tl.constexpr, SEGMENT: tl.constexpr, BEFORE: tl.constexpr,
    AFTER: tl.constexpr, EVEN: tl.constexpr, KEYS_EVEN: tl.constexpr, DQ: tl.constexpr, DT: tl.constexpr,
    HEAD: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, ASM: tl.constexpr,
    OPERANDS: tl.constexpr, ADD: tl.constexpr, ADD_OPERANDS: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """One tile of queries more into dK and dV; rows of the tile are keys. DQ, DT: its share of those, by atomics."""
    i = i0 + tl.arange(0, BM)
    q = rows_of(q_ptr, i, qn, n, HEAD, D, not EVEN)
    do = rows_of(do_ptr, i, gn, n, HEAD, D, not EVEN)
    lse = tl.load(rows_ptr + i)
    delta = tl.load(rows_ptr + padded + i)
    s = tl.dot(k, tl.trans(q), input_precision="ieee") * scale
    s += bias_tile(e_ptr, j[:, None] - i[None, :], width, True, ASM, OPERANDS, PACK)
    p = tl.exp2(s - lse[None, :])
    if MASK:
        seen = visible_tile(i[None, :], j[:, None], n, m, offset, qid_ptr, kid_ptr, CAUSAL, IDS, SEGMENT, BEFORE, AFTER)
        p = tl.where(seen, p, 0.0)
    elif not KEYS_EVEN:
        p = tl.where((j < m)[:, None], p, 0.0)
    dv = tl.dot(p.to(do.dtype), do, dv, input_precision="ieee")
    ds = p * (tl.dot(v, tl.trans(do), input_precision="ieee") - delta[None, :])
    low = ds.to(q.dtype)
    dk = tl.dot(low, q, dk, input_precision="ieee")
    if DQ:
        d = tl.arange(0, D)
        share = tl.dot(tl.trans(low), k, input_precision="ieee")
        place = dq_ptr + i[:, None].to(tl.int64) * HEAD + d[None, :]
        if EVEN and HEAD == D:
            tl.atomic_add(place, share, sem="relaxed")
        else:
            tl.atomic_add(place, share, mask=(i < n)[:, None] & (d < HEAD)[None, :], sem="relaxed")
    if DT:
        add_tile(de_ptr, j[:, None] - i[None, :], ds, width, ADD, ADD_OPERANDS, PACK)
    return dk, dv


@triton.jit
@no_type_check
def keys_kernel(
    q_ptr, k_ptr, v_ptr, e_ptr, qid_ptr, kid_ptr, bounds_ptr, do_ptr, rows_ptr, dq_ptr, dk_ptr, dv_ptr,
    de_ptr, n, m, padded, heads, offset, width, origin, scale, factor,
    qb, qh, qn, kb, kh, kn, vb, vh, vn, gb, gh, gn,
    CAUSAL: tl.constexpr, IDS: tl.constexpr, SEGMENT: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
    ALL_MASKED: tl.constexpr, EVEN: tl.constexpr, KEYS_EVEN: tl.constexpr, DQ: tl.constexpr, DT: tl.constexpr,
    HEAD: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, ASM: tl.constexpr,
    OPERANDS: tl.constexpr, ADD: tl.constexpr, ADD_OPERANDS: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """dK and dV of a tile of keys."""
    block = tl.program_id(0)
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = tl.program_id(1) % heads
    j = block * BN + tl.arange(0, BN)
    row = tl.program_id(1).to(tl.int64)
    q_ptr += b * qb + h * qh
    do_ptr += b * gb + h * gh
    e_ptr += h * 2 * width + origin
    qid_ptr += b * n
    kid_ptr += b * m
    bounds_ptr += (b * tl.num_programs(0) + block) * 2
    rows_ptr += row * 2 * padded
    dq_ptr += row * n * HEAD
    de_ptr += h * 2 * width + origin
    lo, full, hi = query_range(
        block * BN, n, m, offset, bounds_ptr, CAUSAL, IDS, SEGMENT, BEFORE, AFTER, ALL_MASKED, BM, BN
    )
    k = rows_of(k_ptr + b * kb + h * kh, j, kn, m, HEAD, D, not KEYS_EVEN)
    v = rows_of(v_ptr + b * vb + h * vh, j, vn, m, HEAD, D, not KEYS_EVEN)
    dk = tl.zeros((BN, D), tl.float32)
    dv = tl.zeros((BN, D), tl.float32)
    for i0 in range(lo, full, BM):
        dk, dv = keys_step(
            i0, k, v, j, dk, dv, q_ptr, do_ptr, qn, gn, e_ptr, rows_ptr, padded, dq_ptr, de_ptr, width, n, m,
            offset, scale, qid_ptr, kid_ptr,
            True, CAUSAL, IDS, SEGMENT, BEFORE, AFTER, EVEN, KEYS_EVEN, DQ, DT, HEAD, D, BM, BN, ASM,
            OPERANDS, ADD, ADD_OPERANDS, PACK,
        )  # fmt: skip
    for i0 in range(full, hi, BM):
        dk, dv = keys_step(
            i0, k, v, j, dk, dv, q_ptr, do_ptr, qn, gn, e_ptr, rows_ptr, padded, dq_ptr, de_ptr, width, n, m,
            offset, scale, qid_ptr, kid_ptr,
            False, CAUSAL, IDS, SEGMENT, BEFORE, AFTER, EVEN, KEYS_EVEN, DQ, DT, HEAD, D, BM, BN, ASM,
            OPERANDS, ADD, ADD_OPERANDS, PACK,
        )  # fmt: skip
    d = tl.arange(0, D)
    place = (tl.program_id(1).to(tl.int64) * m + j[:, None]) * HEAD + d[None, :]
    inside = (j < m)[:, None] & (d < HEAD)[None, :]
    tl.store(dk_ptr + place, (dk * factor).to(dk_ptr.dtype.element_ty), mask=inside)
    tl.store(dv_ptr + place, dv.to(dv_ptr.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def diagonals_kernel(
    q_ptr, k_ptr, v_ptr, e_ptr, qid_ptr, kid_ptr, do_ptr, rows_ptr, tiles_ptr,
    n, m, padded, b, heads, head0, offset, width, origin, scale,
    qb, qh, qn, kb, kh, kn, vb, vh, vn, gb, gh, gn,
    CAUSAL: tl.constexpr, IDS: tl.constexpr, SEGMENT: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
    MASK: tl.constexpr, PARTS: tl.constexpr,
    HEAD: tl.constexpr, D: tl.constexpr, B: tl.constexpr, ASM: tl.constexpr,
    OPERANDS: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """The sum of dS over all tiles at one block offset, of every PARTS-th row of the batch."""
    rows = tl.cdiv(n, B)
    columns = tl.cdiv(m, B)
    # programs start with the longest diagonals: middle, one above, one below, two above ...
    step = (tl.program_id(0) + 1) // 2
    place = (columns - 1) // 2 + (rows - 1) // 2 + tl.where(tl.program_id(0) % 2 == 1, step, -step)
    count = rows + columns - 1
    place = (place + count) % count
    shift = place - (rows - 1)  # key block less query block
    h = head0 + tl.program_id(1)
    r = tl.arange(0, B)
    total = tl.zeros((B, B), tl.float32)
    seen_any = True
    if CAUSAL:
        seen_any = shift * B <= offset + B - 1
    first = tl.maximum(0, -shift)
    last = tl.minimum(rows, columns - shift)
    if not seen_any:
        last = first
    e_ptr += h * 2 * width + origin
    for bi in range(tl.program_id(2), b, PARTS):
        at = tl.cast(bi, tl.int64)
        row = (at * heads + h) * 2 * padded
        for pm in range(first, last):
            i = pm * B + r
            q = rows_of(q_ptr + at * qb + h * qh, i, qn, n, HEAD, D, MASK)
            do = rows_of(do_ptr + at * gb + h * gh, i, gn, n, HEAD, D, MASK)
            lse = tl.load(rows_ptr + row + i)
            delta = tl.load(rows_ptr + row + padded + i)
            ds, _ = queries_step(
                (pm + shift) * B, q, do, i, lse, delta, k_ptr + at * kb + h * kh, v_ptr + at * vb + h * vh,
                kn, vn, e_ptr, width, n, m, offset, scale, qid_ptr + at * n, kid_ptr + at * m,
                MASK, CAUSAL, IDS, SEGMENT, BEFORE, AFTER, HEAD, D, B, ASM, OPERANDS, PACK,
            )  # fmt: skip
            total += ds
    spot = (tl.program_id(1) * PARTS + tl.program_id(2)) * count + place
    at = r[None, :] * B + r[:, None]  # key first
    tl.store(tiles_ptr + spot.to(tl.int64) * (B * B) + at, total)


@triton.jit
@no_type_check
def sums_kernel(tiles_ptr, sums_ptr, count, PARTS: tl.constexpr, B: tl.constexpr):
    """Sums along the 2B − 1 diagonals of each tile: entry y of 2B holds those of key less query = y − (B − 1)."""
    y = tl.arange(0, 2 * B)
    r = tl.arange(0, B)
    c = r[None, :] + y[:, None] - (B - 1)
    inside = (c >= 0) & (c < B)
    total = tl.zeros((2 * B,), tl.float32)
    for part in range(PARTS):
        tile = (tl.program_id(1) * PARTS + part) * count + tl.program_id(0)
        place = tiles_ptr + tile.to(tl.int64) * (B * B) + c * B + r[None, :]
        total += tl.sum(tl.load(place, mask=inside, other=0.0), 1)
    spot = (tl.program_id(1) * count + tl.program_id(0)).to(tl.int64) * (2 * B)
    tl.store(sums_ptr + spot + y, total)
