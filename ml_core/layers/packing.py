"""Linear layers on one input as one product: each keeps its own parameters, which lie behind each other in memory."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ml_core.errors import InputError


class PackedLinears:
    """Several nn.Linear of one input width; their names, parameters and state dict stay what they are.

    Without gradients the packed weight is the parameters' own memory, so nothing is copied and nothing can go stale. It
    is laid out again where something moved a parameter (`.to`, a load with assign=True). With gradients it is a
    concatenation, so that autograd reaches each parameter.
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        first = linears[0]
        for each in linears:
            if each.in_features != first.in_features or (each.bias is None) != (first.bias is None):
                raise InputError("linears: differ in their input's width, or only some have a bias")
            if each.weight.dtype != first.weight.dtype or each.weight.device != first.weight.device:
                raise InputError("linears: differ in dtype or device")
        self.linears = tuple(linears)
        self._weight, self._bias = first.weight.detach(), None if first.bias is None else first.bias.detach()
        self.pack()

    def pack(self) -> None:
        """Lay the parameters out behind each other; they keep their values and their identity."""
        self._weight = _laid_out([each.weight for each in self.linears])
        if self.linears[0].bias is not None:
            self._bias = _laid_out([each.bias for each in self.linears])

    def tensors(self) -> tuple[Float[Tensor, "c d"], Float[Tensor, " c"] | None]:
        """Weight and bias of the one product."""
        first = self.linears[0]
        if len(self.linears) == 1:
            return first.weight, first.bias
        if torch.is_grad_enabled() and any(p.requires_grad for each in self.linears for p in each.parameters()):
            bias = None if first.bias is None else torch.cat([each.bias for each in self.linears])
            return torch.cat([each.weight for each in self.linears]), bias
        if not torch.compiler.is_compiling() and not self._in_place():
            self.pack()
        return self._weight, self._bias

    def _in_place(self) -> bool:
        packed = [(self._weight, [each.weight for each in self.linears])]
        if self._bias is not None:
            packed.append((self._bias, [each.bias for each in self.linears]))
        for whole, parts in packed:
            at = whole.data_ptr()
            for part in parts:
                if part.data_ptr() != at or part.dtype != whole.dtype:
                    return False
                at += part.numel() * part.element_size()
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> "PackedLinears":
        # copied parameters do not lie behind each other: the copy lays out its own
        return PackedLinears([copy.deepcopy(each, memo) for each in self.linears])


@torch.no_grad()
def _laid_out(parameters: Sequence[Tensor]) -> Tensor:
    whole = torch.cat([each.detach() for each in parameters])
    if len(parameters) == 1:
        return parameters[0].detach()
    for each, part in zip(parameters, whole.split([each.shape[0] for each in parameters]), strict=True):
        each.data = part
    return whole
