"""Looking at the inputs of stand-ins while a model runs in floating point: ranges of static activations."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ml_core.errors import InputError
from ml_core.quant import steps
from ml_core.quant.layers import Fake, FakeQuantEmbedding
from ml_core.seed import torch_generator

_VALUES = 8_192  # drawn of each call; evenly spaced ones could miss a channel


@contextmanager
def floating(model: nn.Module) -> Iterator[None]:
    """Every stand-in computes in floating point, what SmoothQuant did to it included."""
    fakes = [each for each in model.modules() if isinstance(each, Fake)]
    before = [each.floating for each in fakes]
    for each in fakes:
        each.floating = True
    try:
        yield
    finally:
        for each, was in zip(fakes, before, strict=True):
            each.floating = was


@contextmanager
def hooked(
    modules: Sequence[nn.Module],
    *,
    before: Callable[[nn.Module, Tensor], None] | None = None,
    after: Callable[[nn.Module, Tensor], None] | None = None,
) -> Iterator[None]:
    """`before` sees the input of every call of the modules, `after` the output."""
    with ExitStack() as stack:
        for module in modules:
            if before is not None:
                stack.callback(module.register_forward_pre_hook(_before(before), with_kwargs=True).remove)
            if after is not None:
                stack.callback(module.register_forward_hook(_after(after)).remove)
        yield


def input_steps(model: nn.Module, batches: Sequence[Any], *, take: Callable[..., Any]) -> dict[str, Tensor]:
    """For each product's name the step for its whole input that fits what the batches show best (steps.search).

    Raises InputError where a product was never called or had an empty input alone.
    """
    layers = {
        name: each
        for name, each in model.named_modules()
        if isinstance(each, Fake) and not isinstance(each, FakeQuantEmbedding)
    }
    seen: dict[int, list[Tensor]] = {id(layer): [] for layer in layers.values()}
    tops: dict[int, float] = dict.fromkeys(seen, 0.0)
    generator = torch_generator(0, "quant", "ranges")

    def see(layer: nn.Module, x: Tensor) -> None:
        assert isinstance(layer, Fake)
        if not x.numel():
            return
        x = layer.fake_input(x) if layer.input_factor is not None else x
        flat = x.detach().float().flatten()
        tops[id(layer)] = max(tops[id(layer)], float(flat.abs().max()))
        drawn = torch.randint(len(flat), (_VALUES,), generator=generator).to(flat.device)
        seen[id(layer)].append(flat[drawn] if len(flat) > _VALUES else flat)

    with torch.no_grad(), floating(model), hooked(list(layers.values()), before=see):
        for batch in batches:
            take(model, batch)
    if missing := [name for name, layer in layers.items() if not seen[id(layer)]]:
        raise InputError(f"dataset: no batch reached {', '.join(missing)}; skip them, or use activations='token'")
    return {
        name: steps.search(
            torch.cat(seen[id(layer)])[None],
            bits=layer.activation_bits,
            top=torch.tensor([tops[id(layer)]]).to(seen[id(layer)][0].device),
        )[0]
        for name, layer in layers.items()
    }


def _before(see: Callable[[nn.Module, Tensor], None]) -> Callable[..., None]:
    def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        see(module, given[0] if given else next(iter(named.values())))

    return hook


def _after(see: Callable[[nn.Module, Tensor], None]) -> Callable[..., None]:
    def hook(module: nn.Module, _: tuple[Any, ...], out: Tensor) -> None:
        see(module, out)

    return hook
