"""Measuring which path each product of a block takes fastest: right ones only, into the table that `auto` heeds."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ml_core.kernels.norm_mlp import op as mlp
from ml_core.kernels.norm_qkv import op as qkv
from ml_core.kernels.norm_qkv.paths import measure
from ml_core.layers.fuse import super_ops
from ml_core.layers.superops import SuperOps, dispatch, norm_view

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}  # relative RMS against float64

Clock = Callable[[Callable[[], object]], float]


@torch.no_grad()
def measure_block(block: nn.Module, x: Tensor, *, clock: Clock) -> list[dict[str, Any]]:
    """Time every path of the four products of a fused block on inputs like x (b n d); what `paths.measure` said.

    clock: milliseconds of a call. A path that is further off float64 than TOLERANCE is never put into the table.
    """
    (ops,) = super_ops(block).values()
    (wide,) = super_ops(copy.deepcopy(block).double()).values()
    inputs = {
        "qkv": (x,),
        "up": (x,),
        "out": (torch.randn(*x.shape[:-1], ops.attention.out.in_features, device=x.device, dtype=x.dtype), x),
        "down": (torch.randn(*x.shape[:-1], ops.mlp.down.in_features, device=x.device, dtype=x.dtype), x),
    }
    choices, said = dispatch(ops, x), []
    for name, paths in _candidates(ops, x).items():
        given, run = inputs[name], _RUNS[name]
        called = {path: (lambda path=path, run=run, given=given: run(ops, *given, path)) for path in paths}
        truth = run(wide, *(each.double() for each in given), "naive")
        shape = choices[name].shape
        said.append(measure(shape, called, truth=truth, clock=clock, tolerance=TOLERANCE[x.dtype]))
    return said


def _candidates(ops: SuperOps, x: Tensor) -> Mapping[str, list[str]]:
    lt = ops.mlp.activation == "gelu_tanh" and len(ops.mlp.up) == 1 and ops.mlp.up[0].bias is not None
    return {
        "qkv": qkv.candidates(x),
        "up": mlp.candidates(x, lt=lt),
        "out": mlp.candidates(x, tiled=ops.attention.after is None),
        "down": mlp.candidates(x, tiled=ops.mlp.after is None),
    }


def _qkv(ops: SuperOps, x: Tensor, path: str) -> Tensor:
    return torch.cat(ops.qkv(x, path=path), dim=1)


def _up(ops: SuperOps, x: Tensor, path: str) -> Tensor:
    weight, bias = ops.mlp.packed.tensors()
    norm, gated = norm_view(ops.mlp.norm), len(ops.mlp.up) == 2
    return mlp.norm_up(x, weight, bias, activation=ops.mlp.activation, gated=gated, norm=norm, path=path)


def _out(ops: SuperOps, x: Tensor, residual: Tensor, path: str) -> Tensor:
    linear, after = ops.attention.out, norm_view(ops.attention.after)
    return mlp.linear_residual(x, linear.weight, linear.bias, residual, after=after, path=path)


def _down(ops: SuperOps, x: Tensor, residual: Tensor, path: str) -> Tensor:
    linear, after = ops.mlp.down, norm_view(ops.mlp.after)
    return mlp.linear_residual(x, linear.weight, linear.bias, residual, after=after, path=path)


_RUNS: Mapping[str, Callable[..., Tensor]] = {"qkv": _qkv, "up": _up, "out": _out, "down": _down}
