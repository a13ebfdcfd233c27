"""Finding the layers of a model that can be quantized and putting others in their place, shared modules included."""

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch

from torch import nn

# modules whose code reads the weights of their children past the children's forward
_OPAQUE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def candidates(model: nn.Module, *, skip: Sequence[str] = ()) -> Iterator[tuple[str, nn.Module, str]]:
    """(name, module, why it is skipped or "") of every layer with a weight matrix, each module once.

    `skip` holds patterns as of fnmatch over the names.
    """
    opaque = [name for name, module in model.named_modules() if isinstance(module, _OPAQUE)]
    for name, module in model.named_modules():
        if any(not inner or name == inner or name.startswith(f"{inner}.") for inner in opaque):
            if next(module.parameters(recurse=False), None) is not None:
                yield name, module, "its parent reads the weights directly"
        elif type(module) in (nn.Linear, nn.Embedding):
            yield name, module, _reason(name, module, skip=skip)
        elif isinstance(module, nn.Linear | nn.Embedding):
            yield name, module, f"a subclass ({type(module).__name__}) may compute something else"
        elif next(module.parameters(recurse=False), None) is not None:
            yield name, module, f"no int8 form of {type(module).__name__} yet"


def replace(model: nn.Module, *, chosen: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Put chosen(module) in place of every module for which it is not None, at every place where it is registered.

    In place, but for a model that is itself replaced; returns the model.
    """
    done: dict[int, nn.Module | None] = {}

    def of(module: nn.Module) -> nn.Module | None:
        if id(module) not in done:
            done[id(module)] = chosen(module)
        return done[id(module)]

    whole = of(model)
    if whole is not None:
        return whole
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and (new := of(child)) is not None:
                parent._modules[name] = new
    return model


def _reason(name: str, module: nn.Module, *, skip: Sequence[str]) -> str:
    if any(fnmatch(name, pattern) for pattern in skip):
        return "named in skip"
    if hasattr(module, "parametrizations"):
        return "parametrized weight"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "max_norm changes the table while reading it"
    return ""
