"""Public face of norm, MLP and residual: checks shapes, then runs the path measured fastest, or the one demanded."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ml_core.errors import InputError
from ml_core.kernels.norm_mlp import naive
from ml_core.kernels.norm_mlp.naive import Activation
from ml_core.kernels.norm_qkv.backward import with_backward
from ml_core.kernels.norm_qkv.naive import Norm
from ml_core.kernels.norm_qkv.op import check_norm, check_triton, torch_norm
from ml_core.kernels.norm_qkv.paths import TABLE, Choice, shape_of

_TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def norm_mlp(
    x: Float[Tensor, "*b d"],
    up: tuple[Float[Tensor, "c d"], Float[Tensor, " c"] | None],
    down: tuple[Float[Tensor, "d f"], Float[Tensor, " d"] | None],
    *,
    activation: Activation,
    gated: bool = False,
    norm: Norm | None = None,
    after: Norm | None = None,
    path: str = "auto",
) -> Float[Tensor, "*b d"]:
    """after(x + down(activation(up(norm(x))))): `norm` is a pre-LN block's, `after` a post-LN block's."""
    hidden = norm_up(x, *up, activation=activation, gated=gated, norm=norm, path=path)
    return linear_residual(hidden, *down, x, after=after, path=path)


def norm_up(
    x: Float[Tensor, "*b d"],
    weight: Float[Tensor, "c d"],
    bias: Float[Tensor, " c"] | None = None,
    *,
    activation: Activation,
    gated: bool = False,
    norm: Norm | None = None,
    path: str = "auto",
) -> Float[Tensor, "*b f"]:
    """See naive.norm_up. path: "torch" (cuBLAS, activation apart), "lt" (cuBLASLt's own tanh-GELU, no gradients),
    "triton" or "triton-…" (one kernel), "naive"; "auto" is what `choose_up` names.

    Raises InputError naming a wrong argument, or where the demanded path cannot run.
    """
    _check_up(x, weight=weight, bias=bias, gated=gated)
    check_norm("norm", norm, d=x.shape[-1])
    taken = path
    if path == "auto":
        # inside torch.compile inductor fuses
        given: dict[str, Any] = {"activation": activation, "gated": gated, "norm": norm}
        taken = "torch" if torch.compiler.is_compiling() else choose_up(x, weight=weight, bias=bias, **given).path
    if taken == "naive":
        return naive.norm_up(x, weight, bias, activation=activation, gated=gated, norm=norm)
    if taken == "torch":
        return _torch_up(x, weight, bias, activation=activation, gated=gated, norm=norm)
    if taken == "lt":
        return _lt_up(x, weight, bias, activation=activation, gated=gated, norm=norm)
    if taken.startswith("triton"):
        return _triton_up(x, weight, bias, activation=activation, gated=gated, norm=norm, path=taken)
    raise InputError(f"path: {path!r} is none of auto, naive, torch, lt, triton")


def linear_residual(
    x: Float[Tensor, "*b f"],
    weight: Float[Tensor, "d f"],
    bias: Float[Tensor, " d"] | None,
    residual: Float[Tensor, "*b d"],
    *,
    after: Norm | None = None,
    path: str = "auto",
) -> Float[Tensor, "*b d"]:
    """See naive.linear_residual. path: "torch" (cuBLAS, then sum and norm), "triton" or "triton-…" (without `after` one
    kernel; with it cuBLAS, then sum and norm in one kernel), "naive"; "auto" is what `choose_down` names.

    Raises InputError naming a wrong argument, or where the demanded path cannot run.
    """
    _check_down(x, weight=weight, bias=bias, residual=residual)
    check_norm("after", after, d=weight.shape[0])
    taken = path
    if path == "auto":
        taken = "torch" if torch.compiler.is_compiling() else choose_down(x, weight=weight, after=after).path
    if taken == "naive":
        return naive.linear_residual(x, weight, bias, residual, after=after)
    if taken == "torch":
        return torch_norm(residual + functional.linear(x, weight, bias), after)
    if taken.startswith("triton"):
        return _triton_down(x, weight, bias, residual, after=after, path=taken)
    raise InputError(f"path: {path!r} is none of auto, naive, torch, triton")


def choose_up(
    x: Tensor, *, weight: Tensor, bias: Tensor | None, activation: Activation, gated: bool, norm: Norm | None
) -> Choice:
    """The path of "auto" for norm_up, and why. Inside torch.compile it is always "torch"."""
    kind = "none" if norm is None else norm.kind
    form = f"{kind} {activation}{' gated' if gated else ''}"
    shape = shape_of(x, op="norm_up", c=weight.shape[0], form=form)
    training = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    lt = activation == "gelu_tanh" and not gated and bias is not None and not training
    return TABLE.choose(shape, candidates=candidates(x, lt=lt), otherwise="torch")


def choose_down(x: Tensor, *, weight: Tensor, after: Norm | None) -> Choice:
    """The path of "auto" for linear_residual, and why. Inside torch.compile it is always "torch"."""
    form = "residual" if after is None else f"residual {after.kind}"
    shape = shape_of(x, op="linear_residual", c=weight.shape[0], form=form)
    return TABLE.choose(shape, candidates=candidates(x, tiled=after is None), otherwise="torch")


def candidates(x: Tensor, *, lt: bool = False, tiled: bool = True) -> list[str]:
    """The paths that can run on x. lt: whether cuBLASLt's GELU is the function wanted; tiled: a product in Triton."""
    if x.device.type != "cuda":
        return ["torch"]
    paths = ["torch", "lt"] if lt else ["torch"]
    if x.dtype in _TRITON_DTYPES:
        from ml_core.kernels.norm_qkv.kernel import CANDIDATES

        paths += [tiles.path for tiles in CANDIDATES] if tiled else ["triton"]
    return paths


def torch_activated(x: Float[Tensor, "*b f"], activation: Activation) -> Float[Tensor, "*b f"]:
    """The activation by torch's own kernel: the same function on every device."""
    if activation == "silu":
        return functional.silu(x)
    return functional.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def _torch_up(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, activation: Activation, gated: bool, norm: Norm | None
) -> Tensor:
    y = functional.linear(torch_norm(x, norm), weight, bias)
    if not gated:
        return torch_activated(y, activation)
    gate, up = y.chunk(2, dim=-1)
    return torch_activated(gate, activation) * up


def _lt_up(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, activation: Activation, gated: bool, norm: Norm | None
) -> Tensor:
    """GELU in the product's epilogue. It is the tanh form on CUDA alone: on the CPU torch computes erf there."""
    if x.device.type != "cuda" or activation != "gelu_tanh" or gated or bias is None:
        raise InputError("path: lt is for gelu_tanh with a bias, ungated, on CUDA")
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        raise InputError("path: lt has no gradients")
    y = torch_norm(x, norm)
    return torch._addmm_activation(bias, y.flatten(0, -2), weight.T, use_gelu=True).unflatten(0, y.shape[:-1])


def _triton_up(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, activation: Activation, gated: bool, norm: Norm | None, path: str
) -> Tensor:
    nw, nb = (None, None) if norm is None else (norm.weight, norm.bias)
    check_triton(x, weight, bias, nw, nb)
    from ml_core.kernels.norm_mlp import kernel

    def again(nw: Tensor | None, nb: Tensor | None) -> Norm | None:
        return None if norm is None else Norm(kind=norm.kind, eps=norm.eps, weight=nw, bias=nb)

    def fused(x: Tensor, w: Tensor, b: Tensor | None, nw: Tensor | None, nb: Tensor | None) -> Tensor:
        out = x.new_empty(*x.shape[:-1], w.shape[0] // (2 if gated else 1))
        return kernel.norm_up(
            x, w.contiguous(), b, activation=activation, gated=gated, norm=again(nw, nb), path=path, out=out
        )

    def plain(x: Tensor, w: Tensor, b: Tensor | None, nw: Tensor | None, nb: Tensor | None) -> Tensor:
        return _torch_up(x, w, b, activation=activation, gated=gated, norm=again(nw, nb))

    return with_backward(fused, plain, x, weight, bias, nw, nb)


def _triton_down(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, *, after: Norm | None, path: str
) -> Tensor:
    nw, nb = (None, None) if after is None else (after.weight, after.bias)
    check_triton(x, weight, bias, residual, nw, nb)
    from ml_core.kernels.norm_mlp import kernel

    if after is None:

        def fused(x: Tensor, w: Tensor, b: Tensor | None, residual: Tensor) -> Tensor:
            out = torch.empty(residual.shape, dtype=x.dtype, device=x.device)
            return kernel.linear_residual(x, w.contiguous(), b, residual, path=path, out=out)

        def plain(x: Tensor, w: Tensor, b: Tensor | None, residual: Tensor) -> Tensor:
            return residual + functional.linear(x, w, b)

        return with_backward(fused, plain, x, weight, bias, residual)

    def again(nw: Tensor | None, nb: Tensor | None) -> Norm:
        return Norm(kind=after.kind, eps=after.eps, weight=nw, bias=nb)

    def fused_norm(y: Tensor, residual: Tensor, nw: Tensor | None, nb: Tensor | None) -> Tensor:
        out = torch.empty(residual.shape, dtype=y.dtype, device=y.device)
        return kernel.add_norm(y, residual, after=again(nw, nb), out=out)

    def plain_norm(y: Tensor, residual: Tensor, nw: Tensor | None, nb: Tensor | None) -> Tensor:
        return torch_norm(residual + y, again(nw, nb))

    return with_backward(fused_norm, plain_norm, functional.linear(x, weight, bias), residual, nw, nb)


def _check_up(x: Tensor, *, weight: Tensor, bias: Tensor | None, gated: bool) -> None:
    if weight.ndim != 2 or weight.shape[1] != x.shape[-1]:
        raise InputError(f"weight: expected (c, {x.shape[-1]}), got {tuple(weight.shape)}")
    if gated and weight.shape[0] % 2:
        raise InputError(f"weight: {weight.shape[0]} rows are not a gate's and an up's")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"bias: expected ({weight.shape[0]},), got {tuple(bias.shape)}")


def _check_down(x: Tensor, *, weight: Tensor, bias: Tensor | None, residual: Tensor) -> None:
    if weight.ndim != 2 or weight.shape[1] != x.shape[-1]:
        raise InputError(f"weight: expected (d, {x.shape[-1]}), got {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"bias: expected ({weight.shape[0]},), got {tuple(bias.shape)}")
    if residual.shape != (*x.shape[:-1], weight.shape[0]):
        raise InputError(f"residual: expected {(*x.shape[:-1], weight.shape[0])}, got {tuple(residual.shape)}")
