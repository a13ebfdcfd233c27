"""Finding the layers of a model that can be quantized and putting others in their place, shared modules included."""

import sys
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch

from torch import nn

# modules whose code reads the weights of their children past the children's forward, and what of them does
_OPAQUE = {
    nn.MultiheadAttention: "packed in_proj and its fast path",
    nn.TransformerEncoderLayer: "fast path",
    nn.TransformerDecoderLayer: "attention",
}


def candidates(
    model: nn.Module, *, skip: Sequence[str] = (), with_patches: bool = False
) -> Iterator[tuple[str, nn.Module, str]]:
    """(name, module, why it is skipped or "") of every layer with a weight matrix, each module once.

    `skip` holds patterns as of fnmatch over the names. with_patches: patch embeddings are layers too.
    """
    opaque = {
        name: f"{kind.__name__} reads the weights directly ({what})"
        for name, module in model.named_modules()
        for kind, what in _OPAQUE.items()
        if isinstance(module, kind)
    }
    for name, module in model.named_modules():
        inside = [why for outer, why in opaque.items() if not outer or name == outer or name.startswith(f"{outer}.")]
        if inside:
            if next(module.parameters(recurse=False), None) is not None:
                yield name, module, inside[-1]
        elif type(module) in (nn.Linear, nn.Embedding) or is_conv1d(module):
            yield name, module, _reason(name, module, skip=skip)
        elif is_patches(module):
            why = _reason(name, module, skip=skip)
            yield name, module, why or ("" if with_patches else "a patch embedding: quantized with patches=True")
        elif isinstance(module, nn.Linear | nn.Embedding):
            yield name, module, f"a subclass ({type(module).__name__}) may compute something else"
        elif next(module.parameters(recurse=False), None) is not None:
            yield name, module, f"no int8 form of {type(module).__name__} yet"


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' Conv1D, a linear layer with its weight turned; imports nothing for it."""
    there = sys.modules.get("transformers.pytorch_utils")
    return there is not None and type(module) is there.Conv1D


def is_patches(module: nn.Module) -> bool:
    """Whether this is a convolution over patches side by side: step and kernel agree, larger than 1, nothing added."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == module.stride
        and max(module.kernel_size) > 1
        and module.groups == 1
        and module.padding in ((0, 0), "valid")
        and module.dilation == (1, 1)
    )


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
