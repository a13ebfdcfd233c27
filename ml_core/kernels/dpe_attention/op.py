"""Public face of DPE attention: checks shapes, then runs the implementation that suits, or the one demanded."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ml_core.errors import InputError
from ml_core.kernels.dpe_attention import naive
from ml_core.kernels.dpe_attention.library import dpe_forward, dpe_prefixed
from ml_core.kernels.dpe_attention.positions import MASKED, Band, LogBuckets, visibility

Backend = Literal["auto", "naive", "sdpa", "blockwise", "triton"]

_TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# scores of one head from which on blocks are faster on a CPU than scores written out: docs/log.md, 2026-11-25
WRITTEN_OUT = 1 << 18


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
    backend: Backend = "auto",
    deterministic: bool | None = None,
) -> Float[Tensor, "b h n k"]:
    """softmax(q kᵀ · scale + B) v; see naive.dpe_attention for what each argument means.

    `backend` forces an implementation; "auto" is what `choose` names. deterministic: gradients come out the same to the
    bit each time (torch's own setting unless given). Raises InputError naming a wrong argument.
    """
    _check(q, k=k, v=v, table=table, key_mask=key_mask, segment_ids=segment_ids, offset=offset)
    _check_positions(table, band=band, buckets=buckets, offset=offset)
    chosen = choose(q, k, v, table) if backend == "auto" else backend
    if chosen in ("naive", "sdpa"):
        run = naive.dpe_attention if chosen == "naive" else _sdpa
        return run(
            q, k, v, table, causal=causal, key_mask=key_mask, segment_ids=segment_ids, band=band, buckets=buckets,
            offset=offset, scale=scale,
        )  # fmt: skip
    return _fused(
        q, k, v, table, causal=causal, key_mask=key_mask, segment_ids=segment_ids, band=band, buckets=buckets,
        offset=offset, scale=scale, backend=chosen, deterministic=deterministic,
    )[0]  # fmt: skip


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
    backend: Backend = "auto",
    deterministic: bool | None = None,
) -> tuple[Float[Tensor, "b h n k"], Float[Tensor, "b h n"]]:
    """dpe_attention, and the logarithm of each row's sum of exponentials: see naive.dpe_attention_sums.

    Raises InputError for the backend "sdpa", which keeps them to itself; "auto" takes another.
    """
    _check(q, k=k, v=v, table=table, key_mask=key_mask, segment_ids=segment_ids, offset=offset)
    _check_positions(table, band=band, buckets=buckets, offset=offset)
    chosen = choose(q, k, v, table) if backend == "auto" else backend
    if chosen == "sdpa" and backend == "sdpa":
        raise InputError("backend: torch's attention with a mask does not tell its sums")
    if chosen in ("naive", "sdpa"):
        return naive.dpe_attention_sums(
            q, k, v, table, causal=causal, key_mask=key_mask, segment_ids=segment_ids, band=band, buckets=buckets,
            offset=offset, scale=scale,
        )  # fmt: skip
    return _fused(
        q, k, v, table, causal=causal, key_mask=key_mask, segment_ids=segment_ids, band=band, buckets=buckets,
        offset=offset, scale=scale, backend=chosen, deterministic=deterministic,
    )  # fmt: skip


def dpe_attention_prefixed(
    q: Float[Tensor, "b h n k"],
    k: Float[Tensor, "b h m k"],
    v: Float[Tensor, "b h m k"],
    table: Float[Tensor, "h t"],
    *,
    prefix: tuple[Float[Tensor, "b h e k"], Float[Tensor, "b h e k"], Float[Tensor, "b h c e"]],
    band: Band,
    causal: bool = False,
    key_mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b h n k"]:
    """dpe_attention within a band, and on e more keys and values that all queries of a segment see with one bias (−∞:
    not at all). By Triton, without gradients; layers.segments_whole has the same with them.

    Raises InputError naming a wrong argument, or where it cannot run.
    """
    _check(q, k=k, v=v, table=table, key_mask=key_mask, segment_ids=None, offset=0)
    _check_positions(table, band=band, buckets=None, offset=0)
    _check_fused(q, k=k, v=v, table=table, backend="triton")
    b, h, _, size = q.shape
    more, count = prefix[0].shape[2], -(-q.shape[2] // band.segment)
    for name, each, wanted in (
        ("prefix keys", prefix[0], (b, h, more, size)),
        ("prefix values", prefix[1], (b, h, more, size)),
        ("prefix bias", prefix[2], (b, h, count, more)),
    ):
        if tuple(each.shape) != wanted or each.device != q.device:
            raise InputError(f"{name}: expected {wanted} on {q.device}, got {tuple(each.shape)} on {each.device}")
    if torch.is_grad_enabled() and any(each.requires_grad for each in (q, k, v, table, *prefix)):
        raise InputError("prefix: this kernel has no gradients: use torch.no_grad(), or layers.segments_whole")
    ids = _ids(q, m=k.shape[2], key_mask=key_mask, segment_ids=None, offset=0)
    keys, values = (each.to(q.dtype) for each in prefix[:2])
    return dpe_prefixed(
        q, k, v, table, keys, values, prefix[2], *ids, causal, band.segment, band.before, band.after, size**-0.5
    )  # fmt: skip


def choose(
    q: Float[Tensor, "b h n k"], k: Float[Tensor, "b h m k"], v: Float[Tensor, "b h m k"], table: Float[Tensor, "h t"]
) -> Literal["naive", "sdpa", "blockwise", "triton"]:
    """The backend of "auto"; see `rule`."""
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, table))
    return rule(q.device.type, q.dtype, scores=q.shape[2] * k.shape[2], gradients=wanted)


def rule(
    device: str, dtype: torch.dtype, *, scores: int, gradients: bool
) -> Literal["naive", "sdpa", "blockwise", "triton"]:
    """Which backend runs; scores: queries times keys.

    On CUDA "triton" in half precision. In fp32 it has no matrix unit, so there as on the CPU scores are written out
    while they are few: "naive" where gradients are wanted, else "sdpa" (1.4 × as fast, docs/log.md, 2026-11-25).
    From WRITTEN_OUT scores on "triton" on CUDA, "blockwise" on the CPU and in float64.
    """
    if device == "cuda" and dtype in (torch.float16, torch.bfloat16):
        return "triton"
    if scores >= WRITTEN_OUT:
        return "triton" if device == "cuda" and dtype in _TRITON_DTYPES else "blockwise"
    return "naive" if gradients else "sdpa"


def _sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    *,
    causal: bool,
    key_mask: Tensor | None,
    segment_ids: Tensor | None,
    band: Band | None,
    buckets: LogBuckets | None,
    offset: int,
    scale: float | None,
) -> Tensor:
    """torch's scaled_dot_product_attention with the bias written out as a matrix."""
    n, m = q.shape[2], k.shape[2]
    bias = naive.distance_bias(table, n=n, m=m, offset=offset, buckets=buckets).to(q.dtype)[None]
    visible = visibility(
        n=n, m=m, causal=causal, key_mask=key_mask, segment_ids=segment_ids, band=band, offset=offset, device=q.device
    )
    if visible is None:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    bias = bias.masked_fill(~visible, torch.finfo(q.dtype).min)
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return out.masked_fill(~visible.any(-1, keepdim=True), 0.0)


def _fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    *,
    causal: bool,
    key_mask: Tensor | None,
    segment_ids: Tensor | None,
    band: Band | None,
    buckets: LogBuckets | None,
    offset: int,
    scale: float | None,
    backend: str,
    deterministic: bool | None,
) -> tuple[Tensor, Tensor]:
    """The operator of library.py, with both masks as ids."""
    if torch.is_autocast_enabled(q.device.type):
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    _check_fused(q, k=k, v=v, table=table, backend=backend)
    fixed = torch.are_deterministic_algorithms_enabled() if deterministic is None else deterministic
    out, sums = dpe_forward(
        q,
        k,
        v,
        table,
        *_ids(q, m=k.shape[2], key_mask=key_mask, segment_ids=segment_ids, offset=offset),
        causal,
        *((0, 0, 0) if band is None else (band.segment, band.before, band.after)),
        offset,
        *((0, 0) if buckets is None else (buckets.exact, buckets.far)),
        q.shape[3] ** -0.5 if scale is None else scale,
        backend,
        fixed,
    )
    return out, sums


def _ids(
    q: Tensor, *, m: int, key_mask: Tensor | None, segment_ids: Tensor | None, offset: int
) -> tuple[Tensor | None, Tensor | None]:
    """Both masks in one: a query sees the keys that have its id, and a key that is masked has an id of its own."""
    if key_mask is None and segment_ids is None:
        return None, None
    b, n = q.shape[0], q.shape[2]
    ids = torch.zeros(b, m, dtype=torch.int32, device=q.device) if segment_ids is None else segment_ids.int()
    own = q.new_zeros(b, n, dtype=torch.int32) if segment_ids is None else ids[:, offset : offset + n].contiguous()
    return own, (ids if key_mask is None else ids.masked_fill(~key_mask, MASKED)).contiguous()


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


def _check_positions(table: Tensor, *, band: Band | None, buckets: LogBuckets | None, offset: int) -> None:
    if band is not None:
        if band.segment < 1 or band.before < 0 or band.after < 0:
            raise InputError(f"band: {band} is no layout")
        if offset < 0:
            raise InputError(f"offset: {offset} puts queries before the band's first segment")
    reach = table.shape[1] // 2
    if buckets is not None and not 1 <= buckets.exact < min(reach, buckets.far):
        raise InputError(f"buckets: {buckets} do not fit a table of {reach} distances to each side")


def _check_fused(q: Tensor, *, k: Tensor, v: Tensor, table: Tensor, backend: str) -> None:
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype or x.device != q.device:
            raise InputError(f"{name}: {x.dtype} on {x.device}, but q is {q.dtype} on {q.device}")
    if table.device != q.device:
        raise InputError(f"table: on {table.device}, but q is on {q.device}")
    if backend != "triton":
        return
    if q.dtype not in _TRITON_DTYPES:
        raise InputError(f"q: Triton's kernel knows no {q.dtype}")
    from ml_core.kernels.dpe_attention.kernel import runs_on

    if not runs_on(q.device):
        raise InputError(f"q: Triton does not run on {q.device}")
