"""W8A8 layers spelt for an engine: the same levels, the same exact sum of products, the same scales as QuantLinear.

A token's levels are floor(x · (1/step) + 1/2) with step = max|x| / 127 (quant.scheme). The sum over i of level times
weight is an integer; how an engine gets it is the form:

u8u8, u8s8: MatMulInteger of levels + 128 in uint8 by weights in uint8 (+ 128) or int8. Without VNNI x86 adds pairs of
u8 by s8 products in 16 bits, which saturate; u8 by u8 is widened first, and exact everywhere.
held: integers held in fp32 (exact while a sum stays below 2^24, rounded like any fp32 sum beyond).
fake: levels and weights through QuantizeLinear and DequantizeLinear, from which OpenVINO makes int8 products.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from ml_core.errors import InputError
from ml_core.quant.general import GeneralQuantLinear, PackedEmbedding, QuantPatches
from ml_core.quant.layers import QuantLinear
from ml_core.quant.scheme import LEVELS, ZERO
from ml_core.quant.swap import replace
from ml_core.serving.engines.interface import Form

_TINY = 1e-12
_UNSPELT = (GeneralQuantLinear, QuantPatches, PackedEmbedding)


def spelt(module: nn.Module, *, form: Form) -> nn.Module:
    """A copy of `module` whose QuantLinear layers have this form, to be exported or compiled.

    Raises InputError where the form does not fit: "float" is for models without integer layers, others for such with;
    and for integer layers that no form spells (static steps, 4 or 6 bits, factors of the input).
    """
    if other := next((each for each in module.modules() if isinstance(each, _UNSPELT)), None):
        raise InputError(f"form: no engine but torch runs {type(other).__name__} layers")
    integer = any(isinstance(each, QuantLinear) for each in module.modules())
    if integer == (form == "float"):
        raise InputError(f"form: {form!r} does not fit a model with{'' if integer else 'out'} integer layers")
    made = copy.deepcopy(module).eval().requires_grad_(False)
    if form in ("float", "native"):
        return made
    return replace(made, chosen=lambda each: SpeltLinear(each, form=form) if isinstance(each, QuantLinear) else None)


def exact_weights(module: nn.Module) -> nn.Module:
    """A copy of `module` with the weights that its levels stand for, and inputs that are not rounded to levels."""

    def linear(layer: nn.Module) -> nn.Module | None:
        if not isinstance(layer, QuantLinear):
            return None
        made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        made.weight = nn.Parameter(layer.dequantized())
        if layer.bias is not None:
            made.bias = nn.Parameter(layer.bias.clone())
        return made

    return replace(copy.deepcopy(module), chosen=linear).eval().requires_grad_(False)


class SpeltLinear(nn.Module):
    """One QuantLinear in a form. Layers on the same input share its levels (layers.blocks.SharesInput)."""

    weight: Tensor
    zero: Tensor
    weight_zero: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: QuantLinear, *, form: Form) -> None:
        super().__init__()
        self.form = form
        levels = layer.weight.t().contiguous()  # (i, o), as MatMulInteger takes it
        if form == "u8u8":
            levels = (levels.to(torch.int16) + ZERO).to(torch.uint8)
        elif form == "held":
            levels = levels.float()
        self.register_buffer("weight", levels)
        self.register_buffer("zero", torch.tensor(ZERO, dtype=torch.uint8))
        self.register_buffer("weight_zero", torch.tensor(ZERO if form == "u8u8" else 0, dtype=levels.dtype))
        self.register_buffer("scale", layer.weight_scale.detach().clone())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """As QuantLinear's, in fp32."""
        return self.apply_prepared(self.prepare(x))

    def prepare(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Levels as the form holds them, and steps (…, 1)."""
        step = x.abs().amax(-1, keepdim=True).clamp_min(_TINY) / LEVELS
        scaled = x * step.reciprocal()
        if self.form in ("u8u8", "u8s8"):
            return (scaled + (ZERO + 0.5)).to(torch.uint8), step
        if self.form == "held":
            return torch.floor(scaled + 0.5), step
        return rounded(scaled), step

    def apply_prepared(self, prepared: tuple[Tensor, Tensor]) -> Tensor:
        """The output for a prepared input."""
        levels, step = prepared
        if self.form == "fake":
            out = (levels @ dequantize(self.weight, self.scale)) * step
        elif self.form == "held":
            out = functional.linear(levels, self.weight.t()) * self.scale * step
        else:
            out = matmul_integer(levels, self.weight, self.zero, self.weight_zero).float() * self.scale * step
        return out if self.bias is None else out + self.bias


@torch.library.custom_op("assay_engines::matmul_integer", mutates_args=())
def matmul_integer(levels: Tensor, weight: Tensor, zero: Tensor, weight_zero: Tensor) -> Tensor:
    """(… i) by (i o), 8 bits each, less their zero points: int32 sums (… o), exact. ONNX has it by that name."""
    return (levels.to(torch.int32) - zero.int()) @ (weight.to(torch.int32) - weight_zero.int())


@matmul_integer.register_fake
def _(levels: Tensor, weight: Tensor, zero: Tensor, weight_zero: Tensor) -> Tensor:
    return levels.new_empty((*levels.shape[:-1], weight.shape[1]), dtype=torch.int32)


@torch.library.custom_op("assay_engines::rounded", mutates_args=())
def rounded(scaled: Tensor) -> Tensor:
    """Within ±127 to the nearest integer, in fp32. ONNX's QuantizeLinear to int8 by a step of 1, and back."""
    return torch.floor(scaled + 0.5)


@rounded.register_fake
def _(scaled: Tensor) -> Tensor:
    return torch.empty_like(scaled)


@torch.library.custom_op("assay_engines::dequantize", mutates_args=())
def dequantize(weight: Tensor, scale: Tensor) -> Tensor:
    """(i o) int8 and the columns' steps (o): the weight that they stand for. ONNX's DequantizeLinear."""
    return weight.float() * scale


@dequantize.register_fake
def _(weight: Tensor, scale: Tensor) -> Tensor:
    return weight.new_empty(weight.shape, dtype=torch.float32)
