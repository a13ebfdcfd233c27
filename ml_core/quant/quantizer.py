"""Quantizer: one call, two epochs of training with fake quantization, then a new model on integer layers."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ml_core.errors import InputError
from ml_core.quant import scheme
from ml_core.quant.describe import LayerReport, parameter_bytes, sqnr_db
from ml_core.quant.layers import FakeQuantEmbedding, FakeQuantLinear, QuantEmbedding, QuantLinear
from ml_core.quant.swap import candidates, replace

Batch = Any
Outputs = Callable[[nn.Module, Batch], Tensor | Sequence[Tensor]]
Loss = Callable[[nn.Module, Batch], Tensor]


class Quantizer:
    """W8A8 quantization of `model`, which is never changed.

    Weights: symmetric int8, one absmax step an output row, recomputed from the trained weight at every step (not
    learned). Activations: symmetric int8, one dynamic step a token. Norms, tables and everything but Linear and
    Embedding stay in floating point; the report says so layer by layer. `skip` holds name patterns (fnmatch) of layers
    to leave alone. bits = 4 (W4A4) is for training alone: `model` computes it, and `convert` has no layers for it.
    """

    def __init__(self, model: nn.Module, *, bits: int = 8, skip: Sequence[str] = ()) -> None:
        scheme.levels_of(bits)
        self.bits = bits
        self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
        self.skip = tuple(skip)
        self.model = copy.deepcopy(model).requires_grad_(True)
        chosen = {id(module) for _, module, why in candidates(self.model, skip=self.skip) if not why}
        self.model = replace(
            self.model, chosen=lambda module: _fake(module, bits=bits) if id(module) in chosen else None
        )

    def fit(
        self,
        dataset: Iterable[Batch] | Callable[[int], Iterable[Batch]],
        *,
        epochs: int = 2,
        loss: Loss | None = None,
        outputs: Outputs | None = None,
        self_teacher: bool = True,
        teacher_share: float = 0.5,
        lr: float = 3e-5,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> "Quantizer":
        """Train under fake quantization; call it never for plain post-training quantization.

        dataset: batches, to be gone through `epochs` times (a sequence, or a function of the epoch from 0).
        loss: of (model, batch); outputs: what of (model, batch) the self-teacher compares, by default the model called
        on the batch (tuple: positional, mapping: by name). The self-teacher's loss is the squared difference from the
        floating-point model's outputs over their variance; with a `loss` beside it, it has the share `teacher_share`.
        progress: called with (step, steps or 0 where unknown, loss) after every step.
        """
        if loss is None and not self_teacher:
            raise InputError("loss: needed where self_teacher is off")
        share = 0.0 if not self_teacher else 1.0 if loss is None else teacher_share
        take = outputs or _call
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=weight_decay)
        per_epoch = len(dataset) if hasattr(dataset, "__len__") else 0
        self.model.train()
        step = 0
        for epoch in range(epochs):
            for batch in dataset(epoch) if callable(dataset) else dataset:
                total = torch.zeros(())
                if loss is not None and share < 1.0:
                    total = total + (1.0 - share) * loss(self.model, batch)
                if share > 0.0:
                    total = total + share * self._teacher_loss(batch, take=take)
                optimizer.zero_grad(set_to_none=True)
                total.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_grad_norm)
                optimizer.step()
                step += 1
                if progress is not None:
                    progress(step, per_epoch * epochs, float(total.detach()))
        if step == 0 and epochs > 0:
            raise InputError("dataset: no batches")
        self.model.eval()
        return self

    def convert(self) -> tuple[nn.Module, list[LayerReport]]:
        """A new model on integer layers, in eval mode, on the CPU, and what was done to each layer.

        Weights shared by several layers (tied) are quantized once and stay shared. Raises InputError unless bits = 8.
        """
        if self.bits != 8:
            raise InputError(f"bits: integer layers exist for 8 alone, not for {self.bits}")
        model = copy.deepcopy(self.model).cpu().eval().requires_grad_(False)
        report, levels, chosen = [], {}, {}
        for name, module in model.named_modules():
            if not isinstance(module, FakeQuantLinear | FakeQuantEmbedding):
                continue
            weight = module.weight
            if id(weight) not in levels:
                levels[id(weight)] = scheme.quantize_weight(weight)
            chosen[id(module)] = _integer(module, *levels[id(weight)])
            report.append(_converted(name, module, chosen[id(module)]))
        for name, module, why in candidates(model, skip=self.skip):
            if id(module) not in chosen:
                report.append(_skipped(name, module, why=why))
        return replace(model, chosen=lambda module: chosen.get(id(module))), report

    def _teacher_loss(self, batch: Batch, *, take: Outputs) -> Tensor:
        with torch.no_grad():
            wanted = _tensors(take(self.teacher, batch))
        given = _tensors(take(self.model, batch))
        losses = [(a - b).pow(2).mean() / (b.var(unbiased=False) + 1e-6) for a, b in zip(given, wanted, strict=True)]
        return torch.stack(losses).mean()


def _call(model: nn.Module, batch: Batch) -> Tensor | Sequence[Tensor]:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def _tensors(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    found = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if not all(isinstance(item, Tensor) and item.is_floating_point() for item in found):
        raise InputError("outputs: must return a floating-point tensor or a sequence of them")
    return found


def _fake(module: nn.Module, *, bits: int) -> nn.Module:
    """The stand-in with the very same parameters, so that ties and the optimiser's view stay."""
    if isinstance(module, nn.Linear):
        linear = FakeQuantLinear(module.in_features, module.out_features, bias=False, device="meta")
        linear.weight, linear.bias, linear.bits = module.weight, module.bias, bits
        return linear.train(module.training)
    assert isinstance(module, nn.Embedding)
    shape = (module.num_embeddings, module.embedding_dim)
    embedding = FakeQuantEmbedding(*shape, padding_idx=module.padding_idx, device="meta")
    embedding.weight, embedding.bits = module.weight, bits
    return embedding.train(module.training)


def _integer(module: nn.Module, levels: Tensor, scale: Tensor) -> nn.Module:
    if isinstance(module, FakeQuantLinear):
        return QuantLinear(levels, scale, module.bias)
    return QuantEmbedding(levels, scale)


def _converted(name: str, module: nn.Module, new: nn.Module) -> LayerReport:
    weight, levels, scale = module.weight, new.weight, new.weight_scale
    assert isinstance(weight, Tensor)
    assert isinstance(levels, Tensor)
    assert isinstance(scale, Tensor)
    return LayerReport(
        name=name,
        kind="Linear" if isinstance(new, QuantLinear) else "Embedding",
        scheme="W8A8 by row, by token" if isinstance(new, QuantLinear) else "W8 by row",
        shape=tuple(weight.shape),
        bytes_before=parameter_bytes(module),
        bytes_after=parameter_bytes(new),
        sqnr_db=sqnr_db(weight.detach(), levels.float() * scale[:, None]),
    )


def _skipped(name: str, module: nn.Module, *, why: str) -> LayerReport:
    size = parameter_bytes(module)
    shape = next((tuple(parameter.shape) for parameter in module.parameters(recurse=False)), ())
    return LayerReport(
        name=name,
        kind=type(module).__name__,
        scheme="float",
        shape=shape,
        bytes_before=size,
        bytes_after=size,
        skipped=why,
    )
