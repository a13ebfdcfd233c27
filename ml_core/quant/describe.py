"""What quantization did to each layer, and which integer product will run for which shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ml_core.quant import scheme
from ml_core.quant.general import GeneralQuantLinear, PackedEmbedding
from ml_core.quant.layers import QuantEmbedding, QuantLinear


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerReport:
    """One layer: `sqnr_db` of the weight (signal over quantization noise), bytes before and after, `skipped`: why.

    bytes are of tensors that no earlier row has, so that rows sum up to the model; `tied_to` names the row that has
    this layer's weight. `smoothed` says where SmoothQuant's factor went.
    """

    name: str
    kind: str
    scheme: str
    shape: tuple[int, ...]
    bytes_before: int
    bytes_after: int
    sqnr_db: float | None = None
    skipped: str = ""
    tied_to: str = ""
    smoothed: str = ""


def describe(model: nn.Module, *, rows: Sequence[int] = (1, 16, 256, 4096)) -> list[dict[str, Any]]:
    """Every integer layer of `model` with the engine that it will use for each number of rows."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear):
            device = module.weight.device.type
            engines = {
                count: module.engine or scheme.engine_for(rows=count, outputs=module.out_features, device=device)
                for count in rows
            }
            found.append({"name": name, "scheme": "W8A8", "shape": list(module.weight.shape), "engines": engines})
        elif isinstance(module, GeneralQuantLinear):
            device = module.weight.device.type
            engines = {count: module.engine_for(rows=count, device=device) for count in rows}
            shape = [module.out_features, module.in_features]
            found.append({"name": name, "scheme": module.words, "shape": shape, "engines": engines})
        elif isinstance(module, QuantEmbedding | PackedEmbedding):
            kind = "W8" if isinstance(module, QuantEmbedding) else "W4"
            shape = [module.num_embeddings, module.embedding_dim]
            found.append({"name": name, "scheme": kind, "shape": shape, "engines": {}})
    return found


def sqnr_db(exact: Float[Tensor, "*s"], approximate: Float[Tensor, "*s"]) -> float:
    """10·log10 of signal power over error power; infinite when there is no error."""
    error = (exact.double() - approximate.double()).pow(2).sum()
    return float(10 * torch.log10(exact.double().pow(2).sum() / error))


def parameter_bytes(module: nn.Module, *, without: frozenset[int] = frozenset()) -> int:
    """Bytes of a module's own parameters and buffers, but for those whose id is in `without`."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(tensor.numel() * tensor.element_size() for tensor in own if id(tensor) not in without)
