"""The W8A8 layers that take the place of nn.Linear and nn.Embedding, and every stand-in during training."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor, nn
from torch.nn import functional

from ml_core.kernels.linear_w8a8.op import quantize_rows
from ml_core.quant import scheme, steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A quantized input: levels + 128 (m, i), steps (m, 1), and the shape and dtype that it came with."""

    levels: UInt8[Tensor, "m i"]
    step: Float[Tensor, "m 1"]
    shape: torch.Size
    dtype: torch.dtype


class QuantLinear(nn.Module):
    """W8A8 linear layer: `weight` int8 (o, i), `weight_scale` fp32 (o), `bias` fp32 (o) or None. Inference only."""

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Int8[Tensor, "o i"],
        weight_scale: Float[Tensor, " o"],
        bias: Float[Tensor, " o"] | None = None,
        *,
        engine: scheme.Engine | None = None,
    ) -> None:
        """`engine` forces an integer product; None is what scheme.engine_for says for each shape."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.engine = engine
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self._packed: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """Any leading dimensions, contiguous or not; the output has the input's dtype. No gradient flows."""
        return self.apply_prepared(self.prepare(x))

    def prepare(self, x: Float[Tensor, "*b i"]) -> "Prepared":
        """The input's levels and steps, which layers on the same input can share (layers.blocks.SharesInput)."""
        rows = x.reshape(-1, self.in_features)
        with torch.no_grad():
            if (self.engine or rows.device.type) in ("triton", "cuda"):
                levels, step = quantize_rows(rows.detach())
            else:
                levels, step = scheme.quantize_activation(rows.detach().float().contiguous())
        return Prepared(levels=levels, step=step, shape=x.shape[:-1], dtype=x.dtype)

    def apply_prepared(self, prepared: "Prepared") -> Float[Tensor, "*b o"]:
        """The output for a prepared input."""
        rows = prepared.levels.shape[0]
        if rows == 0:
            return prepared.step.new_empty((*prepared.shape, self.out_features), dtype=prepared.dtype)
        device = prepared.levels.device.type
        engine = self.engine or scheme.engine_for(rows=rows, outputs=self.out_features, device=device)
        with torch.no_grad():
            out = scheme.product(
                prepared.levels,
                prepared.step,
                weight=self.weight,
                scale=self.weight_scale,
                bias=self.bias,
                engine=engine,
                packed=self._pack() if engine == "onednn" else None,
            )
        return out.to(prepared.dtype).reshape(*prepared.shape, self.out_features)

    def dequantized(self) -> Float[Tensor, "o i"]:
        """The weight that the levels stand for."""
        return self.weight.float() * self.weight_scale[:, None]

    def extra_repr(self) -> str:
        """Shape, bias, and the engine or the rule that picks it."""
        rule = self.engine or scheme.engine_rule(outputs=self.out_features)
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, W8A8, cpu: {rule}"

    def _pack(self) -> Tensor:
        key = (self.weight.data_ptr(), self.weight._version)
        if self._packed is None or self._packed[0] != key:
            self._packed = (key, scheme.pack(self.weight))
        return self._packed[1]

    def __getstate__(self) -> dict[str, Any]:
        # the packed form is opaque to copy and pickle, and cheap to make again
        return {**self.__dict__, "_packed": None}


class QuantEmbedding(nn.Module):
    """Embedding with int8 rows and one fp32 step a row; a tied QuantLinear shares both tensors.

    `dtype` is that of the rows it gives: the float model's.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(
        self, weight: Int8[Tensor, "v d"], weight_scale: Float[Tensor, " v"], *, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.dtype = dtype
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)

    def forward(self, ids: Int[Tensor, "*b"]) -> Float[Tensor, "*b d"]:
        """The rows of `ids`."""
        rows = functional.embedding(ids, self.weight).float()
        return (rows * functional.embedding(ids, self.weight_scale[:, None])).to(self.dtype)

    def extra_repr(self) -> str:
        """Shape and scheme."""
        return f"{self.num_embeddings}, {self.embedding_dim}, W8 by row"


class Fake(nn.Module):
    """What the stand-ins of training share: they compute what the integer layers will, with straight-through gradients.

    They hold the very parameters of the layer that they stand for, under its names, and where asked for: `input_factor`
    (i), by which the input is multiplied first (SmoothQuant's, where nothing before could take it), `weight_log_step`
    (o) and `input_log_step` (), steps that are learned. `floating` switches quantization off.
    """

    input_factor: Tensor | None
    weight_log_step: nn.Parameter | None
    input_log_step: nn.Parameter | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bits, self.activation_bits, self.floating = 8, 8, False
        self.register_buffer("input_factor", None)
        self.register_parameter("weight_log_step", None)
        self.register_parameter("input_log_step", None)

    @property
    def matrix(self) -> Float[Tensor, "o i"]:
        """The weight with a row an output."""
        return self.weight

    def fake_matrix(self) -> Float[Tensor, "o i"]:
        """The weight as its integer form says it."""
        if self.floating:
            return self.matrix
        if self.weight_log_step is None:
            return scheme.fake_weight(self.matrix, bits=self.bits)
        return steps.learned_weight(self.matrix, self.weight_log_step, bits=self.bits)

    def fake_input(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b i"]:
        """The input as its integer form says it."""
        if self.input_factor is not None:
            x = x * self.input_factor.to(x.dtype)
        if self.floating:
            return x
        if self.input_log_step is None:
            return scheme.fake_activation(x, bits=self.activation_bits)
        return steps.learned_activation(x, self.input_log_step, bits=self.activation_bits)


class FakeQuantLinear(Fake, nn.Linear):
    """nn.Linear that computes what its integer form will."""

    def forward(self, input: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """Fake-quantized product."""
        return functional.linear(self.fake_input(input), self.fake_matrix(), self.bias)


class FakeQuantConv1D(Fake):
    """transformers' Conv1D (GPT-2), a linear layer whose `weight` is (i, o), computing what its integer form will."""

    weight: nn.Parameter
    bias: nn.Parameter

    @property
    def matrix(self) -> Float[Tensor, "o i"]:
        """The weight turned."""
        return self.weight.t()

    def forward(self, input: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """Fake-quantized product."""
        return functional.linear(self.fake_input(input), self.fake_matrix(), self.bias)


class FakeQuantPatches(Fake, nn.Conv2d):
    """nn.Conv2d whose step is its kernel (a patch embedding) as a linear layer over patches; a token is a patch."""

    @property
    def matrix(self) -> Float[Tensor, "o i"]:
        """The kernels laid flat."""
        return self.weight.flatten(1)

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o y x"]:
        """Fake-quantized product."""
        rows = patches(input, self.kernel_size)
        return functional.linear(self.fake_input(rows), self.fake_matrix(), self.bias).permute(0, 3, 1, 2)


class FakeQuantEmbedding(Fake, nn.Embedding):
    """nn.Embedding that looks up what its integer form will, with straight-through gradients."""

    def forward(self, input: Int[Tensor, "*b"]) -> Float[Tensor, "*b d"]:
        """Fake-quantized rows."""
        rows = functional.embedding(input.reshape(-1), self.weight, self.padding_idx)
        if not self.floating and self.weight_log_step is None:
            rows = scheme.fake_weight(rows, bits=self.bits)
        elif not self.floating:
            rows = steps.learned_weight(rows, self.weight_log_step[input.reshape(-1)], bits=self.bits)
        return rows.reshape(*input.shape, self.embedding_dim)


def patches(x: Float[Tensor, "b c h w"], size: tuple[int, ...]) -> Float[Tensor, "b y x i"]:
    """Patches of `size` (rows, columns) side by side, channel by channel; what is left over at the edges is dropped."""
    down, across = size
    cut = x[..., : x.shape[2] // down * down, : x.shape[3] // across * across]
    b, c, h, w = cut.shape
    parts = cut.reshape(b, c, h // down, down, w // across, across)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(b, h // down, w // across, c * down * across)
