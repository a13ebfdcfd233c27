"""From stand-ins to integer layers, with a report of every layer."""

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ml_core.quant import scheme, steps
from ml_core.quant.describe import LayerReport, parameter_bytes, sqnr_db
from ml_core.quant.general import GeneralQuantLinear, PackedEmbedding, QuantPatches, unpacked
from ml_core.quant.layers import (
    Fake,
    FakeQuantConv1D,
    FakeQuantEmbedding,
    FakeQuantLinear,
    FakeQuantPatches,
    QuantEmbedding,
    QuantLinear,
)
from ml_core.quant.swap import candidates, is_conv1d, replace

_LEARNED = ("weight_log_step", "input_log_step")


def stand_in(module: nn.Module, *, bits: int, activation_bits: int) -> Fake:
    """The stand-in of a layer, with the very same parameters, so that ties and the optimiser's view stay."""
    made: Fake
    if is_conv1d(module):
        made = FakeQuantConv1D()
    elif isinstance(module, nn.Conv2d):
        made = FakeQuantPatches(
            module.in_channels, module.out_channels, module.kernel_size, module.stride, bias=False, device="meta"
        )
    elif isinstance(module, nn.Linear):
        made = FakeQuantLinear(module.in_features, module.out_features, bias=False, device="meta")
    else:
        assert isinstance(module, nn.Embedding)
        shape = (module.num_embeddings, module.embedding_dim)
        made = FakeQuantEmbedding(*shape, padding_idx=module.padding_idx, device="meta")
    weight = module._parameters["weight"]
    assert weight is not None
    made.weight = weight
    if not isinstance(module, nn.Embedding):
        made.bias = module._parameters["bias"]
    made.bits, made.activation_bits = bits, activation_bits
    return made.train(module.training)


def converted(
    model: nn.Module, *, skip: Sequence[str], with_patches: bool, smoothed: Mapping[str, str]
) -> tuple[nn.Module, list[LayerReport]]:
    """A copy of `model` on integer layers, in eval mode, on the CPU, and a row for each layer."""
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    levels: dict[int, tuple[Tensor, Tensor]] = {}
    owner: dict[int, str] = {}
    chosen: dict[int, nn.Module] = {}
    report, floats = [], set[int]()
    for name, module in model.named_modules():
        if not isinstance(module, Fake):
            continue
        weight = module.weight
        if id(weight) not in levels:
            levels[id(weight)] = _levels(module)
            owner[id(weight)] = name
        chosen[id(module)] = _integer(module, *levels[id(weight)])
        tied_to = owner[id(weight)] if owner[id(weight)] != name else ""
        report.append(_row(name, module, chosen[id(module)], tied_to=tied_to, smoothed=smoothed.get(name, "")))
    for name, module, why in candidates(model, skip=skip, with_patches=with_patches):
        if id(module) not in chosen:
            # a float layer tied to an integer one keeps a weight of its own from here on
            report.append(_skipped(name, module, why=why, before=frozenset({*owner, *floats}), after=frozenset(floats)))
            floats |= {id(each) for each in module.parameters(recurse=False)}
    return replace(model, chosen=lambda module: chosen.get(id(module))), report


def _levels(module: Fake) -> tuple[Tensor, Tensor]:
    matrix, bits = module.matrix.detach().float(), module.bits
    if module.weight_log_step is None:
        levels, scale = scheme.quantize_weight(matrix, bits=bits)
    else:
        scale = module.weight_log_step.detach().exp().float()
        levels = scheme.weight_levels(matrix, scale, bits=bits)
    levels = levels.contiguous()
    return (steps.pack4(levels) if bits == 4 else levels), scale


def _integer(module: Fake, levels: Tensor, scale: Tensor) -> nn.Module:
    dtype = module.weight.dtype
    if isinstance(module, FakeQuantEmbedding):
        if module.bits == 4:
            return PackedEmbedding(levels, scale, embedding_dim=module.embedding_dim, dtype=dtype)
        return QuantEmbedding(levels, scale, dtype=dtype)
    bias = None if module.bias is None else module.bias.detach().float()
    linear: nn.Module
    step, factor = module.input_log_step, module.input_factor
    if step is None and factor is None and module.activation_bits == 8 and module.bits != 4:
        linear = QuantLinear(levels, scale, bias)
    else:
        linear = GeneralQuantLinear(
            levels,
            scale,
            bias,
            in_features=module.matrix.shape[1],
            bits=(module.bits, module.activation_bits),
            input_scale=None if step is None else step.detach().exp().float(),
            input_factor=None if factor is None else factor.detach().float(),
        )
    return QuantPatches(linear, size=module.kernel_size) if isinstance(module, FakeQuantPatches) else linear


def _row(name: str, module: Fake, new: nn.Module, *, tied_to: str, smoothed: str) -> LayerReport:
    inner = new.linear if isinstance(new, QuantPatches) else new
    weight, scale, matrix = inner.weight, inner.weight_scale, module.matrix.detach().float()
    assert isinstance(weight, Tensor)
    assert isinstance(scale, Tensor)
    shared = frozenset({id(module.weight), id(weight), id(scale)} if tied_to else ())
    aids = frozenset(id(each) for key in _LEARNED if (each := module._parameters[key]) is not None)
    aids |= {id(module.input_factor)}
    kinds = {FakeQuantLinear: "Linear", FakeQuantConv1D: "Conv1D", FakeQuantPatches: "Conv2d (patches)"}
    return LayerReport(
        name=name,
        kind=kinds.get(type(module), "Embedding"),
        scheme=_words(module, inner),
        shape=tuple(module.weight.shape),
        bytes_before=parameter_bytes(module, without=shared | aids),
        bytes_after=parameter_bytes(inner, without=shared),
        sqnr_db=sqnr_db(matrix, unpacked(weight, width=matrix.shape[1]).float() * scale[:, None]),
        tied_to=tied_to,
        smoothed=smoothed,
    )


def _words(module: Fake, inner: nn.Module) -> str:
    if isinstance(inner, GeneralQuantLinear):
        return inner.words
    packed = ", packed" if module.bits == 4 else ""
    return f"W{module.bits}A8 by row, by token" if isinstance(inner, QuantLinear) else f"W{module.bits} by row{packed}"


def _skipped(name: str, module: nn.Module, *, why: str, before: frozenset[int], after: frozenset[int]) -> LayerReport:
    shape = next((tuple(parameter.shape) for parameter in module.parameters(recurse=False)), ())
    return LayerReport(
        name=name,
        kind=type(module).__name__,
        scheme="float",
        shape=shape,
        bytes_before=parameter_bytes(module, without=before),
        bytes_after=parameter_bytes(module, without=after),
        skipped=why,
    )
