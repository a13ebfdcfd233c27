"""Public face of a one-row step: checks shapes, then runs the tiles measured fastest, or the demanded path."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ml_core.errors import InputError
from ml_core.kernels.decode_row import naive
from ml_core.kernels.decode_row.naive import Parts
from ml_core.kernels.norm_qkv import paths
from ml_core.kernels.norm_qkv.paths import TABLE, Choice, PathTable, shape_of

__all__ = ["Parts", "added", "attended", "candidates", "choose", "gated", "measure", "normed", "serves", "turned"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def serves(x: Tensor) -> bool:
    """Whether the kernels run where x lies, in its dtype: in half precision on CUDA. Elsewhere naive is no gain."""
    return x.device.type == "cuda" and x.dtype in (torch.float16, torch.bfloat16)


def normed(
    x: Float[Tensor, "1 d"], norm: Float[Tensor, " d"], parts: Parts, *, eps: float, path: str = "auto"
) -> Float[Tensor, "1 c"]:
    """RMSNorm(x) Wᵀ + b in fp32: the logits."""
    taken = _taken("normed", x, parts, norm=norm, path=path)
    if taken == "naive":
        return naive.normed(x, norm, parts, eps=eps)
    from ml_core.kernels.decode_row import kernel

    c = parts[0].shape[0]
    tiles = kernel.tiles_of(taken, d=x.shape[1])
    out = x.new_empty(1, c, dtype=torch.float32)
    return kernel.product(x, *parts, form=kernel.PLAIN, out=out, count=c, tiles=tiles, norm=norm, eps=eps)


def added(
    x: Float[Tensor, "1 c"], y: Float[Tensor, "1 d"], parts: Parts, *, path: str = "auto"
) -> Float[Tensor, "1 c"]:
    """x + y Wᵀ + b, in x's dtype."""
    taken = _taken("added", y, parts, residual=x, path=path)
    if taken == "naive":
        return naive.added(x, y, parts)
    from ml_core.kernels.decode_row import kernel

    tiles = kernel.tiles_of(taken, d=y.shape[1])
    return kernel.product(
        y, *parts, form=kernel.ADDED, out=torch.empty_like(x), count=x.shape[1], tiles=tiles, residual=x
    )  # fmt: skip


def gated(
    x: Float[Tensor, "1 d"], norm: Float[Tensor, " d"], parts: Parts, *, eps: float, path: str = "auto"
) -> Float[Tensor, "1 f"]:
    """silu(gate) · up of RMSNorm(x), in x's dtype; the weight's rows are gate's f, then up's f."""
    taken = _taken("gated", x, parts, norm=norm, path=path)
    if parts[0].shape[0] % 2:
        raise InputError(f"weight: {parts[0].shape[0]} rows are no gate and up of one size")
    if taken == "naive":
        return naive.gated(x, norm, parts, eps=eps)
    from ml_core.kernels.decode_row import kernel

    f = parts[0].shape[0] // 2
    tiles = kernel.tiles_of(taken, d=x.shape[1])
    return kernel.product(
        x, *parts, form=kernel.GATED, out=x.new_empty(1, f), count=f, tiles=tiles, norm=norm, eps=eps
    )  # fmt: skip


def turned(
    x: Float[Tensor, "1 d"],
    norm: Float[Tensor, " d"],
    parts: Parts,
    *,
    eps: float,
    cos: Float[Tensor, "p k"],
    sin: Float[Tensor, "p k"],
    position: Int[Tensor, " 1"],
    keys: Float[Tensor, "1 g m k"],
    values: Float[Tensor, "1 g m k"],
    path: str = "auto",
) -> Float[Tensor, "h k"]:
    """Queries of RMSNorm(x), turned to `position` (RoPE by halves); keys and values are written into their slot.

    The weight's rows are h heads of queries, g of keys, g of values; position < m stays on the device.
    """
    taken = _taken("turned", x, parts, norm=norm, path=path)
    g, k = keys.shape[1], keys.shape[3]
    heads, rest = divmod(parts[0].shape[0], k)
    if rest or heads <= 2 * g or k % 2:
        raise InputError(f"weight: {parts[0].shape[0]} rows are no heads of {k} with {g} of keys and of values")
    if not (keys.is_contiguous() and values.is_contiguous() and cos.is_contiguous() and sin.is_contiguous()):
        raise InputError("keys, values, cos, sin: must be contiguous, since they are written and read as they lie")
    if taken == "naive":
        return naive.turned(
            x, norm, parts, eps=eps, cos=cos, sin=sin, position=position, keys=keys, values=values
        )  # fmt: skip
    from ml_core.kernels.decode_row import kernel

    tiles = kernel.tiles_of(taken, d=x.shape[1])
    return kernel.product(
        x, *parts, form=kernel.TURNED, out=x.new_empty(heads - 2 * g, k), count=heads * k // 2, tiles=tiles,
        norm=norm, eps=eps, rope=(cos, sin, position), caches=(keys, values),
    )  # fmt: skip


def attended(
    q: Float[Tensor, "h k"],
    keys: Float[Tensor, "1 g m k"],
    values: Float[Tensor, "1 g m k"],
    *,
    position: Int[Tensor, " 1"],
    most: int,
    path: str = "auto",
) -> Float[Tensor, "1 c"]:
    """Attention of each query over the slots up to `position`, which is below `most` ≤ m; heads behind one another.

    What is read goes by the position, not by `most`. path: "naive", "triton"; "auto" is Triton where it `serves`.
    """
    if not 0 < most <= keys.shape[2]:
        raise InputError(f"most: {most} is not within the cache's {keys.shape[2]} slots")
    if q.shape[0] % keys.shape[1]:
        raise InputError(f"q: {q.shape[0]} heads do not share {keys.shape[1]} heads of keys evenly")
    if path not in ("auto", "naive", "triton"):
        raise InputError(f"path: {path!r} is none of auto, naive, triton")
    if path == "naive" or (path == "auto" and not serves(q)):
        return naive.attended(q, keys[:, :, :most], values[:, :, :most], position=position)
    from ml_core.kernels.decode_row import kernel

    if not kernel.runs_on(q.device):
        raise InputError(f"path: 'triton' needs CUDA, not {q.device.type}")
    if not (q.is_contiguous() and keys.is_contiguous() and values.is_contiguous()):
        raise InputError("q, keys, values: must be contiguous, since they are read as they lie")
    out = torch.empty_like(q)
    return kernel.attended(q, keys, values, position, most=most, out=out).view(1, -1)


def choose(op: str, x: Float[Tensor, "1 d"], parts: Parts) -> Choice:
    """The path of "auto" for this operator, x and weight, and why; str() of it is a line to print."""
    weight, scale, bias = parts
    form = f"{'int8' if scale is not None else 'dense'}{'' if bias is None else ' bias'}"
    shape = shape_of(x, op=f"decode_row.{op}", c=weight.shape[0], form=form)
    if not serves(x):
        return Choice(shape=shape, path="naive", why="half precision on CUDA alone has kernels")
    return TABLE.choose(shape, candidates=candidates(x), otherwise="triton")


def candidates(x: Tensor) -> list[str]:
    """The paths that are worth a try on x."""
    if not serves(x):
        return ["naive"]
    from ml_core.kernels.decode_row.kernel import CANDIDATES

    return [tiles.path for tiles in CANDIDATES]


@torch.no_grad()
def measure(
    op: str,
    run: Callable[..., Tensor],
    x: Float[Tensor, "1 d"],
    parts: Parts,
    *,
    clock: Callable[[Callable[[], object]], float],
    table: PathTable = TABLE,
) -> dict[str, Any]:
    """Time every path of `run(path=…)`, which is operator `op` on x and this weight; `table` heeds it then.

    A path that is further than 1e-2 (relative RMS) from naive's result is never chosen.
    """
    runs = {path: partial(run, path=path) for path in candidates(x)}
    shape = choose(op, x, parts).shape
    return paths.measure(shape, runs, truth=run(path="naive").double(), clock=clock, tolerance=1e-2, table=table)


def _taken(
    op: str, x: Tensor, parts: Parts, *, path: str, norm: Tensor | None = None, residual: Tensor | None = None
) -> str:
    """Checks what all products share, and names the path."""
    weight, scale, bias = parts
    c = weight.shape[0]
    if weight.ndim != 2 or weight.shape[1] != x.shape[1] or not weight.is_contiguous():
        raise InputError(f"weight: expected contiguous (c, {x.shape[1]}), got {tuple(weight.shape)}")
    if (weight.dtype == torch.int8) != (scale is not None):
        raise InputError(f"scale: belongs to an int8 weight and to no other; the weight is {weight.dtype}")
    for name, tensor, size in (("scale", scale, c), ("bias", bias, c), ("norm", norm, x.shape[1])):
        if tensor is not None and (tensor.shape != (size,) or not tensor.is_contiguous()):
            raise InputError(f"{name}: expected contiguous ({size},), got {tuple(tensor.shape)}")
    if not x.is_contiguous() or (residual is not None and not residual.is_contiguous()):
        raise InputError("x, y: must be contiguous, since they are read as they lie")
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, norm, residual, *parts)):
        raise InputError("x: a step is for inference only and has no gradient: use torch.no_grad()")
    taken = choose(op, x, parts).path if path == "auto" else path
    if taken == "naive":
        return taken
    if not taken.startswith("triton"):
        raise InputError(f"path: {path!r} is none of auto, naive, triton")
    from ml_core.kernels.decode_row import kernel

    if not kernel.runs_on(x.device):
        raise InputError(f"path: {taken!r} needs CUDA, not {x.device.type}")
    if x.dtype not in _DTYPES:
        raise InputError(f"path: Triton's kernel knows no {x.dtype}")
    return taken
