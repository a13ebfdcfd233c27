"""Tensors of a quantized model, and the float architecture turned into it again."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ml_core.errors import ArtifactError
from ml_core.quant.layers import QuantEmbedding, QuantLinear
from ml_core.quant.swap import replace


def quantized_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors: int8 `weight` beside `weight_scale` where quantized; tied ones share memory."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def load_quantized(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Turn a freshly built float `model` into the quantized one that `tensors` describe, and load them.

    Layers whose name has a `weight_scale` become integer layers. Changes and returns `model`, in eval mode, on the
    CPU. Raises ArtifactError when names or shapes do not match.
    """
    chosen = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.Linear | nn.Embedding) and f"{prefix}weight_scale" in tensors:
            chosen[id(module)] = _empty(module, name=name)
    # looked up by id before anything is replaced, so shared modules stay shared
    model = replace(model, chosen=lambda module: chosen.get(id(module)))
    try:
        model.load_state_dict(dict(tensors), strict=True, assign=True)
    except RuntimeError as error:
        raise ArtifactError(f"the tensors do not fit the architecture: {error}") from error
    return model.eval().requires_grad_(False)


def _empty(module: nn.Module, *, name: str) -> nn.Module:
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise ArtifactError(f"{name} has no weight to be replaced")
    levels = torch.zeros(weight.shape, dtype=torch.int8)
    scale = torch.ones(weight.shape[0])
    if isinstance(module, nn.Embedding):
        return QuantEmbedding(levels, scale)
    bias = module.bias
    return QuantLinear(levels, scale, torch.zeros(weight.shape[0]) if isinstance(bias, Tensor) else None)
