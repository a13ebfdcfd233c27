"""Quantizer: one call, two epochs of training with fake quantization, then a new model on integer layers."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ml_core.errors import InputError
from ml_core.quant import scheme, smooth, steps
from ml_core.quant.convert import converted, stand_in
from ml_core.quant.describe import LayerReport
from ml_core.quant.layers import Fake
from ml_core.quant.observe import floating, input_steps
from ml_core.quant.swap import candidates, replace

Batch = Any
Shown = Tensor | Sequence[Tensor] | Mapping[str, Any]
Outputs = Callable[[nn.Module, Batch], Shown]
Loss = Callable[[nn.Module, Batch], Tensor]
Dataset = Iterable[Batch] | Callable[[int], Iterable[Batch]]

CALIBRATION_BATCHES = 8
HELD_OUT_EVERY = 8
# the better of 3e-5 and 3e-6 by the loss on SST-2's dev examples (MiniLM, bench quant)
RATES = {8: 3e-6, 6: 3e-6, 4: 3e-5}


class Quantizer:
    """Quantization of `model`, which is never changed: linear layers, embeddings and heads to `bits` 8, 6 or 4.

    model: any module; nn.Linear, nn.Embedding, transformers' Conv1D and, with `patches`, convolutions that embed
    patches become integer layers. Norms, tables and everything else stay in floating point; the report says why.
    skip: name patterns (fnmatch) of layers to leave alone.
    Weights: symmetric, one step a row. The step is the row's largest magnitude over the largest level, recomputed from
    the trained weight at every step, or with `learn_weight_scales` it is found by least squared error and then learned
    (LSQ, Esser et al. 2020).
    activations: "token", symmetric with a dynamic step a token, or "tensor", with one static step a layer, found on the
    first batches and learned as LSQ does until ranges freeze. activation_bits: as `bits` unless given.
    smooth: None, or the migration strength α from 0 (all difficulty stays in the activations) to 1 of a SmoothQuant
    pre-pass (Xiao et al. 2022). It and static activations need data: `calibrate`, or `fit`, which does it first.
    Raises InputError naming a wrong argument.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        bits: int = 8,
        skip: Sequence[str] = (),
        activation_bits: int | None = None,
        activations: str = "token",
        learn_weight_scales: bool = False,
        smooth: float | None = None,
        patches: bool = False,
    ) -> None:
        scheme.levels_of(bits)
        if activation_bits is not None and activation_bits not in scheme.BITS:
            raise InputError(f"activation_bits: {activation_bits} is none of {', '.join(map(str, scheme.BITS))}")
        if activations not in ("token", "tensor"):
            raise InputError(f'activations: {activations!r} is neither "token" nor "tensor"')
        if smooth is not None and not 0.0 <= smooth <= 1.0:
            raise InputError(f"smooth: the migration strength lies between 0 and 1, not at {smooth}")
        if isinstance(skip, str):
            raise InputError(f"skip: a sequence of patterns, not the one string {skip!r}")
        self.bits, self.activation_bits = bits, activation_bits or bits
        self.activations, self.learn_weight_scales, self.alpha = activations, learn_weight_scales, smooth
        self.skip, self.patches = tuple(skip), patches
        self.smoothed: dict[str, str] = {}
        self.held_out_losses: tuple[float, float] | None = None
        self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
        self.model = copy.deepcopy(model).requires_grad_(True)
        found = candidates(self.model, skip=self.skip, with_patches=patches)
        chosen = {id(module) for _, module, why in found if not why}
        self.model = replace(self.model, chosen=lambda module: self._fake(module) if id(module) in chosen else None)
        self._calibrated = smooth is None and activations == "token"
        if learn_weight_scales:
            self._learn_weights()

    def calibrate(
        self, dataset: Dataset, *, outputs: Outputs | None = None, batches: int = CALIBRATION_BATCHES
    ) -> "Quantizer":
        """SmoothQuant's pre-pass and the ranges of static activations, from the first `batches` of the dataset.

        Nothing is trained. outputs: as in `fit`; smoothing keeps them as they are. Called again it starts from what is
        there. Raises InputError where there is no batch, or where a static layer saw none.
        """
        if batches < 1:
            raise InputError(f"batches: at least 1, not {batches}")
        shown = list(islice(dataset(0) if callable(dataset) else dataset, batches))
        if not shown:
            raise InputError("dataset: no batches")
        self.model.eval()
        take = _listed(outputs or _call)
        if self.alpha is not None:
            if not self.smoothed:
                self.smoothed = smooth.smooth(self.model, shown, alpha=self.alpha, take=take)
            if self.learn_weight_scales:
                self._learn_weights()
        if self.activations == "tensor":
            layers = dict(self.model.named_modules())
            for name, step in input_steps(self.model, shown, take=take).items():
                layers[name].input_log_step = nn.Parameter(step.log())
        self._calibrated = True
        return self

    def fit(
        self,
        dataset: Dataset,
        *,
        epochs: int = 2,
        loss: Loss | None = None,
        outputs: Outputs | None = None,
        self_teacher: bool = True,
        teacher_share: float = 0.5,
        lr: float | None = None,
        scale_lr: float = 1e-3,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        freeze_after: int | None = 1,
        steps: int | None = None,
        dropout: bool = False,
        held_out: Sequence[Batch] | None = None,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> "Quantizer":
        """Train under fake quantization, and undo it where that made the loss on `held_out` no lower.

        Call it never for plain post-training quantization.
        dataset: batches, to be gone through `epochs` times (a sequence, or a function of the epoch from 0).
        held_out: batches that nothing is trained on. None: of a list or tuple of at least two batches every eighth, or
        the last of fewer than eight; of anything else none, and training is never undone. `held_out_losses` then holds
        the losses before and after.
        steps: how many in all, where the dataset has no length; where it is known the rates fall to 0 by half a cosine.
        dropout: whether the model trains in train mode, batch norms apart, which keep the float model's statistics. By
        default it is in eval mode, as the self-teacher is: it would be taught to undo its own dropout.
        loss: of (model, batch); outputs: what of (model, batch) the self-teacher compares, by default the model called
        on the batch (tuple: positional, mapping: by name); of a mapping, as transformers' models give, it takes the
        floating-point tensors. The self-teacher's loss is the squared difference from the floating-point model's
        outputs over their variance; with a `loss` beside it, it has the share `teacher_share`.
        lr: of everything else, by default RATES[bits], for pretrained encoders.
        scale_lr: of learned steps, relative (a step of the optimiser moves them by about this share). freeze_after:
        learned steps stay as they are after so many epochs, None for never.
        progress: called with (step, steps or 0 where unknown, loss) after every step.
        Raises InputError naming a wrong argument, or where the dataset has no batch.
        """
        if loss is None and not self_teacher:
            raise InputError("loss: needed where self_teacher is off")
        _refuse(epochs=epochs, freeze_after=freeze_after, teacher_share=teacher_share, steps=steps)
        lr = RATES[self.bits] if lr is None else lr
        if min(lr, scale_lr, max_grad_norm) <= 0.0:
            raise InputError("lr, scale_lr and max_grad_norm: above 0")
        share = 0.0 if not self_teacher else 1.0 if loss is None else teacher_share
        objective = self._objective(loss=loss, take=outputs or _call, share=share)
        if held_out is None:
            dataset, held_out = _parted(dataset)
        if not self._calibrated:
            self.calibrate(dataset, outputs=outputs)
        state = copy.deepcopy(self.model.state_dict()) if held_out else {}
        before = self._mean(held_out, objective)
        optimizer = torch.optim.AdamW(self._groups(lr=lr, scale_lr=scale_lr, weight_decay=weight_decay))
        total_steps = steps or (len(dataset) * epochs if hasattr(dataset, "__len__") else 0)
        schedule = _schedule(optimizer, steps=total_steps)
        self._mode(dropout=dropout)
        step = 0
        for epoch in range(epochs):
            if freeze_after is not None and epoch >= freeze_after:
                self._freeze()
            for batch in dataset(epoch) if callable(dataset) else dataset:
                total = objective(batch)
                optimizer.zero_grad(set_to_none=True)
                total.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_grad_norm)
                optimizer.step()
                schedule.step()
                step += 1
                if progress is not None:
                    progress(step, total_steps, float(total.detach()))
        if step == 0 and epochs > 0:
            raise InputError("dataset: no batches")
        self.model.eval()
        if held_out:
            after = self._mean(held_out, objective)
            if not after < before:  # a loss that is no number included
                self.model.load_state_dict(state)
            self.held_out_losses = before, after
        return self

    def convert(self) -> tuple[nn.Module, list[LayerReport]]:
        """A new model on integer layers, in eval mode, on the CPU, and what was done to each layer.

        8 bits: int8. 6: int8 within ±31. 4: within ±7, two a byte. Weights shared by several layers (tied) are
        quantized once and stay shared. Raises InputError where smoothing or static ranges still wait for data.
        """
        if not self._calibrated:
            raise InputError("calibrate: smoothing and static activations need data first, from calibrate or fit")
        return converted(self.model, skip=self.skip, with_patches=self.patches, smoothed=self.smoothed)

    @contextmanager
    def floating(self) -> Iterator[nn.Module]:
        """`model` in floating point: what it computes before rounding, smoothing included."""
        with floating(self.model):
            yield self.model

    def _fake(self, module: nn.Module) -> Fake:
        return stand_in(module, bits=self.bits, activation_bits=self.activation_bits)

    def _learn_weights(self) -> None:
        found: dict[int, nn.Parameter] = {}
        for module in self._fakes():
            key = id(module.weight)
            if key not in found:
                found[key] = nn.Parameter(steps.search(module.matrix, bits=self.bits).log())
            module.weight_log_step = found[key]

    def _fakes(self) -> list[Fake]:
        return [module for module in self.model.modules() if isinstance(module, Fake)]

    def _learned(self) -> list[nn.Parameter]:
        both = [each for fake in self._fakes() for each in (fake.weight_log_step, fake.input_log_step)]
        return list({id(each): each for each in both if each is not None}.values())

    def _groups(self, *, lr: float, scale_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        learned = self._learned()
        ids = {id(each) for each in learned}
        rest = [each for each in self.model.parameters() if id(each) not in ids]
        groups: list[dict[str, Any]] = [{"params": rest, "lr": lr, "weight_decay": weight_decay}]
        return groups + ([{"params": learned, "lr": scale_lr, "weight_decay": 0.0}] if learned else [])

    def _freeze(self) -> None:
        for each in self._learned():
            each.requires_grad_(False)
            each.grad = None

    def _mode(self, *, dropout: bool) -> None:
        self.model.train(dropout)
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def _objective(self, *, loss: Loss | None, take: Outputs, share: float) -> Callable[[Batch], Tensor]:
        def objective(batch: Batch) -> Tensor:
            parts = []
            if loss is not None and share < 1.0:
                parts.append((1.0 - share) * loss(self.model, batch))
            if share > 0.0:
                parts.append(share * self._teacher_loss(batch, take=take))
            return torch.stack(parts).sum()

        return objective

    def _mean(self, batches: Sequence[Batch], objective: Callable[[Batch], Tensor]) -> float:
        self.model.eval()
        with torch.no_grad():
            losses = [float(objective(batch)) for batch in batches]
        return math.fsum(losses) / max(1, len(losses))

    def _teacher_loss(self, batch: Batch, *, take: Outputs) -> Tensor:
        with torch.no_grad():
            wanted = _tensors(take(self.teacher, batch))
        given = _tensors(take(self.model, batch))
        losses = [(a - b).pow(2).mean() / (b.var(unbiased=False) + 1e-6) for a, b in zip(given, wanted, strict=True)]
        return torch.stack(losses).mean()


def _refuse(*, epochs: int, freeze_after: int | None, teacher_share: float, steps: int | None) -> None:
    if epochs < 0 or (freeze_after is not None and freeze_after < 0):
        raise InputError(f"epochs and freeze_after: not below 0, as in {epochs} and {freeze_after}")
    if not 0.0 <= teacher_share <= 1.0:
        raise InputError(f"teacher_share: between 0 and 1, not {teacher_share}")
    if steps is not None and steps < 1:
        raise InputError(f"steps: at least 1, not {steps}")


def _parted(dataset: Dataset) -> tuple[Dataset, Sequence[Batch]]:
    """Of a list or tuple what to train on and what is held out: every eighth, or the last of fewer."""
    if not isinstance(dataset, list | tuple) or len(dataset) < 2:
        return dataset, ()
    places = range(HELD_OUT_EVERY - 1, len(dataset), HELD_OUT_EVERY) or range(len(dataset) - 1, len(dataset))
    return (
        [batch for place, batch in enumerate(dataset) if place not in places],
        [dataset[place] for place in places],
    )


def _schedule(optimizer: torch.optim.Optimizer, *, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Half a cosine to 0 over `steps`; constant where they are unknown (0), and 0 after."""

    def share(step: int) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / steps))) if steps else 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def _call(model: nn.Module, batch: Batch) -> Shown:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def _tensors(outputs: Shown) -> list[Tensor]:
    if isinstance(outputs, Mapping):  # transformers' ModelOutput
        outputs = [item for item in outputs.values() if isinstance(item, Tensor) and item.is_floating_point()]
    found = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if not found or not all(isinstance(item, Tensor) and item.is_floating_point() for item in found):
        raise InputError("outputs: must return a floating-point tensor, or a sequence or mapping of them")
    return found


def _listed(take: Outputs) -> Callable[[nn.Module, Batch], list[Tensor]]:
    return lambda model, batch: _tensors(take(model, batch))
