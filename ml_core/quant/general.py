"""Integer layers for everything beside W8A8 by token: 6 and 4 bits, static activations, factors of inputs, patches."""

from typing import Any, cast

import torch
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor, nn
from torch.nn import functional

from ml_core.quant import scheme, steps
from ml_core.quant.layers import patches


class GeneralQuantLinear(nn.Module):
    """Linear layer on integers, inference only; layers on one input share nothing (each may have its own step).

    weight: int8 (o, i), or with 4 bits uint8 (o, ⌈i/2⌉), two levels a byte, unpacked anew in every call, so that memory
    stays what the report says; weight_scale fp32 (o); bias fp32 (o) or None. input_scale: one fp32 step for the whole
    input, or None for a step a token. input_factor: fp32 (i), by which the input is multiplied first, or None. `bits`
    holds the bits of weight and input. engine: as in QuantLinear.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    input_scale: Tensor | None
    input_factor: Tensor | None
    bits: Tensor

    def __init__(
        self,
        weight: Int8[Tensor, "o i"] | UInt8[Tensor, "o j"],
        weight_scale: Float[Tensor, " o"],
        bias: Float[Tensor, " o"] | None = None,
        *,
        in_features: int,
        bits: tuple[int, int],
        input_scale: Float[Tensor, ""] | None = None,
        input_factor: Float[Tensor, " i"] | None = None,
        engine: scheme.Engine | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.engine = in_features, weight.shape[0], engine
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self.register_buffer("input_scale", input_scale)
        self.register_buffer("input_factor", input_factor)
        self.register_buffer("bits", torch.tensor(bits, dtype=torch.uint8))
        self.weight_bits, self.activation_bits = bits  # the same as numbers: reading a tensor makes a GPU wait
        self._packed: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """Any leading dimensions, contiguous or not; the output has the input's dtype. No gradient flows."""
        rows = x.detach().reshape(-1, self.in_features)
        if rows.shape[0] == 0:
            return x.new_empty((*x.shape[:-1], self.out_features))
        with torch.no_grad():
            levels, step = self._quantize(rows)
            engine = self.engine_for(rows=rows.shape[0], device=rows.device.type)
            out = scheme.product(
                levels,
                step,
                weight=self.levels(),
                scale=self.weight_scale,
                bias=self.bias,
                engine=engine,
                packed=self._pack() if engine == "onednn" else None,
            )
        return out.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def levels(self) -> Int8[Tensor, "o i"]:
        """The weight's levels as int8, unpacked."""
        return unpacked(self.weight, width=self.in_features)

    def dequantized(self) -> Float[Tensor, "o i"]:
        """The weight that the levels stand for (of the input after its factor)."""
        return self.levels().float() * self.weight_scale[:, None]

    def engine_for(self, *, rows: int, device: str) -> scheme.Engine:
        """The integer product for so many rows; oneDNN would keep a second form of the weight, so 4 bits go without."""
        engine = self.engine or scheme.engine_for(rows=rows, outputs=self.out_features, device=device)
        return "int_mm" if engine == "onednn" and self.weight.dtype == torch.uint8 else engine

    @property
    def words(self) -> str:
        """The scheme in words."""
        weight, given = self.weight_bits, self.activation_bits
        packed = ", packed" if self.weight.dtype == torch.uint8 else ""
        by = "by token" if self.input_scale is None else "by tensor"
        factor = "" if self.input_factor is None else ", factor an input"
        return f"W{weight}A{given} by row{packed}, {by}{factor}"

    def extra_repr(self) -> str:
        """Shape, bias and scheme."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.words}"

    def _quantize(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        given = self.activation_bits
        if self.input_factor is not None:
            # in the input's own precision, as in training
            rows = rows * self.input_factor.to(rows.dtype)
        wide = rows.float().contiguous()
        if self.input_scale is None:
            return scheme.quantize_activation(wide, bits=given)
        step = self.input_scale.reshape(1, 1).repeat(len(wide), 1)
        return scheme.quantize_static(wide, self.input_scale, bits=given), step

    def _pack(self) -> Tensor:
        key = (self.weight.data_ptr(), self.weight._version)
        if self._packed is None or self._packed[0] != key:
            self._packed = (key, scheme.pack(self.weight))
        return self._packed[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}


class QuantPatches(nn.Module):
    """A patch embedding (Conv2d whose step is its kernel) on an integer linear layer over patches."""

    def __init__(self, linear: nn.Module, *, size: tuple[int, ...]) -> None:
        super().__init__()
        self.linear, self.size = linear, size

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o y x"]:
        """As the convolution's."""
        return cast(Tensor, self.linear(patches(x, self.size))).permute(0, 3, 1, 2)


class PackedEmbedding(nn.Module):
    """Embedding of 4 bits: weight uint8 (v, ⌈d/2⌉), two levels a byte, one fp32 step a row; rows in `dtype`."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(
        self,
        weight: UInt8[Tensor, "v j"],
        weight_scale: Float[Tensor, " v"],
        *,
        embedding_dim: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.dtype = weight.shape[0], embedding_dim, dtype
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)

    def forward(self, ids: Int[Tensor, "*b"]) -> Float[Tensor, "*b d"]:
        """The rows of `ids`; only these are unpacked."""
        rows = steps.unpack4(functional.embedding(ids, self.weight), width=self.embedding_dim).float()
        return (rows * functional.embedding(ids, self.weight_scale[:, None])).to(self.dtype)

    def extra_repr(self) -> str:
        """Shape and scheme."""
        return f"{self.num_embeddings}, {self.embedding_dim}, W4 by row, packed"


def unpacked(weight: Tensor, *, width: int) -> Int8[Tensor, "o i"]:
    """int8 levels, whether they are packed (uint8) or not."""
    return steps.unpack4(weight, width=width) if weight.dtype == torch.uint8 else weight
