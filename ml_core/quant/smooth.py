"""SmoothQuant (Xiao et al. 2022): outliers of activations are moved into the weights before anything is quantized.

Input channel j of a product is divided by s_j = max|X_j|^α / max|W_j|^(1−α) (equation 4) and the weight's column is
multiplied by it. Where a norm or a linear layer feeds nothing but such products, the division goes into its own
weight and bias; else the layer keeps a factor an input channel. Which of the two is found by trying it: nothing but
the model's own answer shows whether the tensor has other readers (a residual, a second head).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ml_core.quant.layers import Fake, FakeQuantConv1D, FakeQuantLinear
from ml_core.quant.observe import floating, hooked

_LEAST = 1e-5
# a channel that calibration hardly saw counts as so much of the largest one: it may wake up later
_QUIET = 0.01
_TOLERANCE = 1e-3  # a wrong fold is off by factors of 4; a right one by nothing but rounding


@dataclass(kw_only=True, eq=False)
class _Group:
    """Layers on one tensor, and what made it, where a module did."""

    names: list[str]
    layers: list[Fake]
    producer: tuple[str, nn.Module] | None


def smooth(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    alpha: float,
    take: Callable[[nn.Module, Any], Sequence[Tensor]],
) -> dict[str, str]:
    """Smooth every product of `model`, which holds stand-ins, in place; its floating-point function stays the same.

    batches: a few of calibration. take: the outputs that must stay. Returns for each layer's name where its factor
    went: "into NAME", "factor an input" or "left alone: WHY".
    """
    done: dict[str, str] = {}
    with torch.no_grad(), _evaluating(model), floating(model):
        tops = _tops(model, batches, take=take)
        groups = _groups(model, batches[0], take=take)
        wanted = [tensor.clone() for tensor in take(model, batches[0])]

        def same() -> bool:
            return all(_near(a, b) for a, b in zip(take(model, batches[0]), wanted, strict=True))

        for group in groups:
            factor = _factor(group, tops=tops, alpha=alpha)
            where = "factor an input"
            if group.producer is not None and _folds(group, same=same):
                _fold(group, factor)
                where = f"into {group.producer[0]}"
            else:
                for layer in group.layers:
                    _scale_columns(layer, factor)
                    layer.input_factor = factor.reciprocal()
            done |= dict.fromkeys(group.names, where)
        for name, layer in _products(model):
            if name not in done:
                done[name] = "left alone: its weight is tied" if _tied(model, layer) else "left alone: never called"
    return done


def _tops(model: nn.Module, batches: Sequence[Any], *, take: Callable[..., Any]) -> dict[int, Tensor]:
    """Largest magnitude of each input channel, by the layer's id."""
    tops: dict[int, Tensor] = {}

    def see(layer: nn.Module, x: Tensor) -> None:
        top = x.detach().float().abs().flatten(0, -2).amax(0) if x.numel() else None
        if top is not None:
            tops[id(layer)] = torch.maximum(tops[id(layer)], top) if id(layer) in tops else top

    with hooked([layer for _, layer in _products(model)], before=see):
        for batch in batches:
            take(model, batch)
    return tops


def _groups(model: nn.Module, batch: Any, *, take: Callable[..., Any]) -> list[_Group]:
    """Layers by the tensor that they read; a layer that is called on several, or with a tied weight, is told apart."""
    read: dict[tuple[int, int, int], list[int]] = {}
    made: dict[tuple[int, int, int], tuple[str, nn.Module]] = {}
    names = {id(layer): name for name, layer in _products(model)}
    layers = {id(layer): layer for _, layer in _products(model) if not _tied(model, layer)}
    producers = {id(each): (name, each) for name, each in model.named_modules() if _foldable(each)}
    kept: list[Tensor] = []  # alive until the end, so that no address is given twice

    def see_input(layer: nn.Module, x: Tensor) -> None:
        kept.append(x)
        read.setdefault(_place(x), []).append(id(layer))

    def see_output(layer: nn.Module, y: Tensor) -> None:
        kept.append(y)
        made[_place(y)] = producers[id(layer)]

    with (
        hooked(list(layers.values()), before=see_input),
        hooked([each for _, each in producers.values()], after=see_output),
    ):
        take(model, batch)
    calls = [key for keys in read.values() for key in keys]
    often = {key for key in calls if calls.count(key) > 1}
    groups = [
        _Group(names=[names[key] for key in keys], layers=[layers[key] for key in keys], producer=made.get(place))
        for place, keys in read.items()
        if not often & set(keys)
    ]
    return groups + [_Group(names=[names[key]], layers=[layers[key]], producer=None) for key in sorted(often)]


def _factor(group: _Group, *, tops: dict[int, Tensor], alpha: float) -> Float[Tensor, " i"]:
    given = torch.stack([tops[id(layer)] for layer in group.layers]).amax(0)
    weight = torch.stack([layer.matrix.detach().float().abs().amax(0) for layer in group.layers]).amax(0)
    given = given.clamp_min(max(_LEAST, _QUIET * float(given.max())))
    factor = given**alpha / weight.clamp_min(_LEAST) ** (1.0 - alpha)
    return factor.clamp(_LEAST, 1.0 / _LEAST)


def _folds(group: _Group, *, same: Callable[[], bool]) -> bool:
    """Try powers of two, which change no rounding, and take them back."""
    width = group.layers[0].matrix.shape[1]
    probe = torch.full((width,), 4.0, device=group.layers[0].matrix.device)
    probe[::2] = 0.25
    touched = [*group.producer[1].parameters(recurse=False), *(layer.weight for layer in group.layers)]
    before = [tensor.detach().clone() for tensor in touched]
    _fold(group, probe)
    held = same()
    for tensor, old in zip(touched, before, strict=True):
        tensor.data.copy_(old)
    return held


def _fold(group: _Group, factor: Float[Tensor, " i"]) -> None:
    producer = group.producer[1]
    inverse = factor.reciprocal()
    if isinstance(producer, Fake):
        producer.weight.data.copy_(producer.weight * inverse[:, None].to(producer.weight.dtype))
    else:
        producer.weight.data.copy_(producer.weight * inverse.to(producer.weight.dtype))
    bias = producer._parameters.get("bias")
    if bias is not None:
        bias.data.copy_(bias * inverse.to(bias.dtype))
    for layer in group.layers:
        _scale_columns(layer, factor)


def _scale_columns(layer: Fake, factor: Float[Tensor, " i"]) -> None:
    factor = factor.to(layer.weight.dtype)
    turned = factor[:, None] if isinstance(layer, FakeQuantConv1D) else factor
    layer.weight.data.copy_(layer.weight * turned)


def _foldable(module: nn.Module) -> bool:
    """A linear layer, or a norm with a weight of one dimension (LayerNorm, and RMSNorm by whatever name)."""
    if isinstance(module, FakeQuantLinear):
        return True
    weight = module._parameters.get("weight")
    normal = isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")
    return normal and weight is not None and weight.ndim == 1


def _products(model: nn.Module) -> list[tuple[str, Fake]]:
    return [(name, each) for name, each in model.named_modules() if isinstance(each, FakeQuantLinear | FakeQuantConv1D)]


def _tied(model: nn.Module, layer: Fake) -> bool:
    return sum(each is layer.weight for other in model.modules() for each in other._parameters.values()) > 1


def _place(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), x.numel(), x.shape[-1]


def _near(a: Tensor, b: Tensor) -> bool:
    scale = float(b.abs().max()) if b.numel() else 0.0
    return bool(((a - b).abs() <= _TOLERANCE * scale).all())


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [each for each in model.modules() if each.training]
    model.eval()
    try:
        yield
    finally:
        for each in training:
            each.training = True
