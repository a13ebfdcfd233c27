"""Tensors of a quantized model, and the float architecture turned into it again."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ml_core.errors import ArtifactError
from ml_core.quant.general import GeneralQuantLinear, PackedEmbedding, QuantPatches
from ml_core.quant.layers import QuantEmbedding, QuantLinear
from ml_core.quant.swap import is_conv1d, is_patches, replace


def quantized_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors: integer `weight` beside `weight_scale` where quantized; tied ones share memory."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def load_quantized(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Turn a freshly built float `model` into the quantized one that `tensors` describe, and load them.

    Layers whose name has a `weight_scale` become integer layers: of 4 bits where the weight is uint8, general ones
    where `bits` stands beside it. Changes and returns `model`, in eval mode, on the CPU. Raises ArtifactError when
    names or shapes do not match.
    """
    chosen = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        inner = f"{prefix}linear." if is_patches(module) else prefix
        if f"{inner}weight_scale" in tensors and (made := _empty(module, name=name, prefix=inner, tensors=tensors)):
            chosen[id(module)] = made
    # looked up by id before anything is replaced, so shared modules stay shared
    model = replace(model, chosen=lambda module: chosen.get(id(module)))
    try:
        model.load_state_dict(dict(tensors), strict=True, assign=True)
    except RuntimeError as error:
        raise ArtifactError(f"the tensors do not fit the architecture: {error}") from error
    return model.eval().requires_grad_(False)


def _empty(module: nn.Module, *, name: str, prefix: str, tensors: Mapping[str, Tensor]) -> nn.Module | None:
    """The integer layer for `module`, to be filled; None where the module is none of those that have one."""
    known = isinstance(module, nn.Linear | nn.Embedding) or is_conv1d(module) or is_patches(module)
    if not known:
        return None
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise ArtifactError(f"{name} has no weight to be replaced")
    rows, columns = (weight.t() if is_conv1d(module) else weight.flatten(1)).shape
    stored = tensors.get(f"{prefix}weight")
    packed = stored is not None and stored.dtype == torch.uint8
    levels = torch.zeros((rows, -(-columns // 2) if packed else columns), dtype=torch.uint8 if packed else torch.int8)
    scale = torch.ones(rows)
    if isinstance(module, nn.Embedding):
        if packed:
            return PackedEmbedding(levels, scale, embedding_dim=columns, dtype=weight.dtype)
        return QuantEmbedding(levels, scale, dtype=weight.dtype)
    bias = torch.zeros(rows) if isinstance(module.bias, Tensor) else None
    linear = _linear(levels, scale, bias, columns=columns, prefix=prefix, tensors=tensors)
    return QuantPatches(linear, size=module.kernel_size) if isinstance(module, nn.Conv2d) else linear


def _linear(
    levels: Tensor, scale: Tensor, bias: Tensor | None, *, columns: int, prefix: str, tensors: Mapping[str, Tensor]
) -> nn.Module:
    bits = tensors.get(f"{prefix}bits")
    if bits is None:
        return QuantLinear(levels, scale, bias)
    weight_bits, activation_bits = bits.tolist()
    return GeneralQuantLinear(
        levels,
        scale,
        bias,
        in_features=columns,
        bits=(weight_bits, activation_bits),
        input_scale=torch.ones(()) if f"{prefix}input_scale" in tensors else None,
        input_factor=torch.ones(columns) if f"{prefix}input_factor" in tensors else None,
    )
