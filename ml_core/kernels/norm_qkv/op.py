"""Public face of norm and projections: checks shapes, then runs the path measured fastest, or the one demanded."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ml_core.errors import InputError
from ml_core.kernels.norm_qkv import naive
from ml_core.kernels.norm_qkv.backward import with_backward
from ml_core.kernels.norm_qkv.naive import Norm
from ml_core.kernels.norm_qkv.paths import TABLE, Choice, shape_of

TORCH_PATHS = ("packed", "separate")
_TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def norm_qkv(
    x: Float[Tensor, "b n d"],
    weight: Float[Tensor, "c d"],
    bias: Float[Tensor, " c"] | None = None,
    *,
    heads: int,
    kv_heads: int | None = None,
    norm: Norm | None = None,
    path: str = "auto",
) -> tuple[Float[Tensor, "b h n k"], Float[Tensor, "b g n k"], Float[Tensor, "b g n k"]]:
    """Queries, keys and values of norm(x) in head layout; see naive.norm_qkv for the arguments.

    path: "packed" (norm, one product, heads are views of it), "separate" (three products), "triton" (one kernel; heads
    contiguous) or "triton-ROWSxCOLUMNSxDEPTHwWARPSsSTAGES", "naive"; "auto" is what `choose` names. Raises InputError
    naming a wrong argument, or where the demanded path cannot run.
    """
    g = heads if kv_heads is None else kv_heads
    _check(x, weight=weight, bias=bias, heads=heads, kv_heads=g)
    check_norm("norm", norm, d=x.shape[-1])
    taken = path
    if path == "auto":
        taken = "packed" if torch.compiler.is_compiling() else choose(x, c=weight.shape[0], norm=norm).path
    if taken == "naive":
        return naive.norm_qkv(x, weight, bias, heads=heads, kv_heads=g, norm=norm)
    if taken == "separate":
        return _separate(x, weight, bias, heads=heads, kv_heads=g, norm=norm)
    if taken == "packed":
        y = _packed(x, weight, bias, heads=heads + 2 * g, norm=norm)
    elif taken.startswith("triton"):
        y = _triton(x, weight, bias, heads=heads + 2 * g, norm=norm, path=taken)
    else:
        raise InputError(f"path: {path!r} is none of auto, naive, packed, separate, triton")
    return y[:, :heads], y[:, heads : heads + g], y[:, heads + g :]


def choose(x: Float[Tensor, "b n d"], *, c: int, norm: Norm | None) -> Choice:
    """The path of "auto" for x and c columns, and why. Inside torch.compile it is always "packed": inductor fuses."""
    shape = shape_of(x, op="norm_qkv", c=c, form="none" if norm is None else norm.kind)
    return TABLE.choose(shape, candidates=candidates(x), otherwise="packed")


def candidates(x: Tensor) -> list[str]:
    """The paths that can run on x, Triton's with each of its tilings."""
    paths = list(TORCH_PATHS)
    if x.device.type == "cuda" and x.dtype in _TRITON_DTYPES:
        from ml_core.kernels.norm_qkv.kernel import CANDIDATES

        paths += [tiles.path for tiles in CANDIDATES]
    return paths


def torch_norm(x: Float[Tensor, "*b d"], norm: Norm | None) -> Float[Tensor, "*b d"]:
    """The norm by torch's own kernel."""
    if norm is None:
        return x
    if norm.kind == "layer":
        return functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    return functional.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)


def check_norm(name: str, norm: Norm | None, *, d: int) -> None:
    """Raise InputError where a norm's weights do not fit the width d."""
    if norm is None:
        return
    if norm.kind == "rms" and norm.bias is not None:
        raise InputError(f"{name}: an RMSNorm has no bias")
    for part, tensor in (("weight", norm.weight), ("bias", norm.bias)):
        if tensor is not None and tensor.shape != (d,):
            raise InputError(f"{name}: expected a {part} of ({d},), got {tuple(tensor.shape)}")


def check_triton(x: Tensor, *tensors: Tensor | None) -> None:
    """Raise InputError where a Triton kernel cannot take these."""
    from ml_core.kernels.norm_qkv.kernel import runs_on

    if not runs_on(x.device):
        raise InputError(f"path: Triton does not run on {x.device}")
    if x.dtype not in _TRITON_DTYPES:
        raise InputError(f"path: Triton's kernel knows no {x.dtype}")
    for each in tensors:
        if each is not None and (each.dtype != x.dtype or each.device != x.device):
            raise InputError(f"path: Triton's kernel wants one dtype and device, not {x.dtype} and {each.dtype}")


def _packed(x: Tensor, weight: Tensor, bias: Tensor | None, *, heads: int, norm: Norm | None) -> Tensor:
    y = functional.linear(torch_norm(x, norm), weight, bias)
    return y.view(*y.shape[:2], heads, weight.shape[0] // heads).transpose(1, 2)


def _separate(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, heads: int, kv_heads: int, norm: Norm | None
) -> tuple[Tensor, Tensor, Tensor]:
    k = weight.shape[0] // (heads + 2 * kv_heads)
    sizes = [heads * k, kv_heads * k, kv_heads * k]
    biases = (None, None, None) if bias is None else bias.split(sizes)
    y = torch_norm(x, norm)
    q, key, v = (
        functional.linear(y, w, b).view(*x.shape[:2], w.shape[0] // k, k).transpose(1, 2)
        for w, b in zip(weight.split(sizes), biases, strict=True)
    )
    return q, key, v


def _triton(x: Tensor, weight: Tensor, bias: Tensor | None, *, heads: int, norm: Norm | None, path: str) -> Tensor:
    nw, nb = (None, None) if norm is None else (norm.weight, norm.bias)
    check_triton(x, weight, bias, nw, nb)
    from ml_core.kernels.norm_qkv import kernel

    size = weight.shape[0] // heads

    def again(nw: Tensor | None, nb: Tensor | None) -> Norm | None:
        return None if norm is None else Norm(kind=norm.kind, eps=norm.eps, weight=nw, bias=nb)

    def fused(x: Tensor, w: Tensor, b: Tensor | None, nw: Tensor | None, nb: Tensor | None) -> Tensor:
        out = x.new_empty(x.shape[0], heads, x.shape[1], size)
        return kernel.norm_qkv(x, w.contiguous(), b, head_size=size, norm=again(nw, nb), path=path, out=out)

    def plain(x: Tensor, w: Tensor, b: Tensor | None, nw: Tensor | None, nb: Tensor | None) -> Tensor:
        return _packed(x, w, b, heads=heads, norm=again(nw, nb))

    return with_backward(fused, plain, x, weight, bias, nw, nb)


def _check(x: Tensor, *, weight: Tensor, bias: Tensor | None, heads: int, kv_heads: int) -> None:
    if x.ndim != 3:
        raise InputError(f"x: expected (b, n, d), got {tuple(x.shape)}")
    if weight.ndim != 2 or weight.shape[1] != x.shape[-1]:
        raise InputError(f"weight: expected (c, {x.shape[-1]}), got {tuple(weight.shape)}")
    if heads < 1 or kv_heads < 1 or heads % kv_heads:
        raise InputError(f"kv_heads: {kv_heads} do not divide {heads} heads")
    if weight.shape[0] % (heads + 2 * kv_heads):
        raise InputError(f"weight: {weight.shape[0]} rows are not {heads} + 2 · {kv_heads} heads of one size")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"bias: expected ({weight.shape[0]},), got {tuple(bias.shape)}")
