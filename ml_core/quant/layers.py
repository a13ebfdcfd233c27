"""The integer layers that take the place of nn.Linear and nn.Embedding, and their stand-ins during training."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor, nn
from torch.nn import functional

from ml_core.kernels.linear_w8a8.op import quantize_rows
from ml_core.quant import scheme


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
    """Embedding with int8 rows and one fp32 step a row; a tied QuantLinear shares both tensors."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, weight: Int8[Tensor, "v d"], weight_scale: Float[Tensor, " v"]) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)

    def forward(self, ids: Int[Tensor, "*b"]) -> Float[Tensor, "*b d"]:
        """The rows of `ids` in fp32."""
        return functional.embedding(ids, self.weight).float() * functional.embedding(ids, self.weight_scale[:, None])

    def extra_repr(self) -> str:
        """Shape and scheme."""
        return f"{self.num_embeddings}, {self.embedding_dim}, W8 by row"


class FakeQuantLinear(nn.Linear):
    """nn.Linear that computes what QuantLinear will, with straight-through gradients; same parameter names.

    With `bits` other than 8 the weights and inputs have as many levels as those say; no integer layer exists for them.
    """

    bits = 8

    def forward(self, input: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """Fake-quantized product."""
        given, weight = scheme.fake_activation(input, bits=self.bits), scheme.fake_weight(self.weight, bits=self.bits)
        return functional.linear(given, weight, self.bias)


class FakeQuantEmbedding(nn.Embedding):
    """nn.Embedding that looks up what QuantEmbedding will, with straight-through gradients.

    `bits` as in FakeQuantLinear.
    """

    bits = 8

    def forward(self, input: Int[Tensor, "*b"]) -> Float[Tensor, "*b d"]:
        """Fake-quantized rows."""
        return functional.embedding(input, scheme.fake_weight(self.weight, bits=self.bits), self.padding_idx)
