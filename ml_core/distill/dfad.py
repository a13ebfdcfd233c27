"""DFAD: dynamic feature alignment distillation, as published and mended (engine.md, section 1)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ml_core.distill.cka import linear_cka
from ml_core.distill.features import Features, masked_mean
from ml_core.distill.logits import logits_kl
from ml_core.distill.moments import cosine_and_distance, picked
from ml_core.distill.nearness import distances, mean_cosine, standardised, standardised_alike
from ml_core.distill.pairing import Assignment, Pairs, cka_measured, cka_pairs, pair_layers
from ml_core.distill.relations import heads_loss, similarity, similarity_loss
from ml_core.distill.resample import TokenResampler
from ml_core.distill.spec import DFADConfig, DFADLoss
from ml_core.distill.weighting import depth_factors
from ml_core.errors import InputError

__all__ = ["DFAD", "DFADConfig", "DFADLoss", "compiled"]

Quantize = Callable[[Tensor], Tensor]
_LEVELS = {"token", "layer", "global", "heads"}
_CKA_ROWS = 256  # of a batch: its cost grows with the square
_GOLDEN = 0.6180339887498949


class DFAD(nn.Module):
    """total = α·align + (1 − α)·((1 − κ)·task + κ·T²·KL), α = alpha·(1 − progress), κ = kl_share.

    Its parameters (projectors, resampler) are trained with the student and thrown away after. The teacher's
    features get no gradient. `teacher_widths`, `student_widths`: one width a layer; widths of the pooled embeddings are
    those of the last layers unless given. `pairs` overrides the pairing (DFAD.measured finds those by CKA).
    `quantizer`: the student's own fake quantization with a straight-through gradient, where the student is trained for
    integers; both sides pass through it, so that what the student cannot say is no loss (SQuaT). The step has no
    branch on data and no transfer to the host: `compiled(dfad)` is one graph.
    """

    cos_mean: Tensor
    steps: Tensor
    depth: Tensor

    def __init__(
        self,
        config: DFADConfig,
        teacher_widths: tuple[int, ...],
        student_widths: tuple[int, ...],
        *,
        teacher_pooled: int | None = None,
        student_pooled: int | None = None,
        pairs: Pairs | None = None,
        quantizer: Quantize | None = None,
    ) -> None:
        super().__init__()
        if not teacher_widths or not student_widths:
            raise InputError("teacher_widths, student_widths: at least one layer each")
        if unknown := set(config.levels) - _LEVELS:
            raise InputError(f"levels: unknown {', '.join(sorted(unknown))}")
        if not 0.0 < config.token_share <= 1.0:
            raise InputError(f"token_share: {config.token_share} is not in (0, 1]")
        self.config, self.quantizer = config, quantizer
        self.shape = (len(student_widths), len(teacher_widths))
        self.by_layer = bool({"token", "layer"} & set(config.levels))
        self.pairs = pairs or _pairs(config, teacher=len(teacher_widths), student=len(student_widths))
        self.sources = tuple(range(len(teacher_widths))) if _is_learned(config) else tuple(t for _, t in self.pairs)
        if _is_learned(config):
            if len(set(teacher_widths)) > 1 or config.weighting == "as_published":
                raise InputError("pairing: a learned one needs teacher layers of one width, and is not as published")
            self.assignment = Assignment(config, teacher=len(teacher_widths), student=len(student_widths))
        exact = config.weighting == "as_published"
        widths = [(student_widths[s], teacher_widths[t]) for s, t in self.pairs] if self.by_layer else []
        self.projectors = nn.ModuleList(_projector(*width, exact=exact) for width in widths)
        self.groups = tuple(tuple(i for i, w in enumerate(widths) if w == width) for width in dict.fromkeys(widths))
        if self.by_layer:
            self.resampler = TokenResampler(teacher_widths[self.pairs[-1][1]])
        if "global" in config.levels:
            pooled = (student_pooled or student_widths[-1], teacher_pooled or teacher_widths[-1])
            self.global_projector = _projector(*pooled, exact=exact)
        depth = depth_factors(config, [t + 1 for t in self.sources], layers=len(teacher_widths))
        self.register_buffer("depth", depth, persistent=False)
        self.register_buffer("cos_mean", torch.zeros(len(self.pairs)))
        self.register_buffer("steps", torch.zeros(()))

    @classmethod
    def measured(
        cls, config: DFADConfig, shown: Sequence[tuple[Features, Features]], *, quantizer: Quantize | None = None
    ) -> "DFAD":
        """DFAD for the (student, teacher) features of the first batches: widths from their shapes, pairs by their CKA.

        Deterministic: the same features give the same pairs. On the CPU, in single precision. Raises InputError
        where nothing is shown, or the pairing is "cka" and no batch has four rows.
        """
        if not shown:
            raise InputError("shown: at least one batch")
        student, teacher = shown[0]
        return cls(
            config,
            teacher.widths,
            student.widths,
            teacher_pooled=teacher.pooled.shape[-1],
            student_pooled=student.pooled.shape[-1],
            pairs=cka_pairs(cka_measured(shown)) if config.pairing == "cka" else None,
            quantizer=quantizer,
        )

    def forward(
        self,
        student: Features,
        teacher: Features | None,
        task_loss: Float[Tensor, ""],
        progress: float | Float[Tensor, ""],
        *,
        alignment: Float[Tensor, "b n m"] | None = None,
    ) -> DFADLoss:
        """One batch's loss; `progress` is the share of the training done, in [0, 1].

        alignment: rows that pool the teacher's m tokens to the student's n (spans.span_alignment); rows of zeros are
        tokens that the teacher does not have. Without it unequal counts are resampled by place. `teacher` may be None
        where nothing of it is asked for. In training mode the running mean of the cosines moves too.
        """
        config, zero = self.config, task_loss.new_zeros(())
        if teacher is None:
            if config.levels or config.kl_share:
                raise InputError("teacher: needed by the levels and by kl_share")
            aligned, kl, share = _Aligned.nothing(zero), zero, 0.0
        else:
            teacher = teacher.detach()
            aligned = self._aligned(student, teacher, alignment=alignment, zero=zero)
            kl = logits_kl(student, teacher=teacher, temperature=config.temperature)
            share = config.kl_share if student.logits is not None and teacher.logits is not None else 0.0
        alpha = config.alpha * (1.0 - progress)
        task = (1.0 - share) * task_loss + share * config.temperature**2 * kl
        return DFADLoss(
            total=alpha * aligned.sum() + (1.0 - alpha) * task,
            task=task_loss,
            align_token=aligned.token,
            align_layer=aligned.layer,
            align_global=aligned.whole,
            align_heads=aligned.heads,
            assignment=aligned.assignment,
            logits_kl=kl,
            weights=aligned.weights,
            cos=aligned.cos,
            cka=aligned.cka,
            alpha=alpha,
        )

    def get_extra_state(self) -> Tensor:
        """The pairs: a checkpoint of other pairs is of another loss."""
        return torch.tensor(self.pairs)

    def set_extra_state(self, state: Tensor) -> None:
        """Refuses a state that was trained on other pairs."""
        if state.tolist() != [list(pair) for pair in self.pairs]:
            raise InputError(f"pairs: the state is for {state.tolist()}, not for {self.pairs}")

    def _aligned(self, student: Features, teacher: Features, *, alignment: Tensor | None, zero: Tensor) -> "_Aligned":
        result = _Aligned.nothing(zero)
        if self.by_layer:
            self._by_layer(result, student=student, teacher=teacher, alignment=alignment)
        if "global" in self.config.levels:
            result.whole = self._global_loss(student, teacher=teacher)
        if "heads" in self.config.levels:
            result.heads = self.config.heads * self._heads_loss(student, teacher=teacher, alignment=alignment)
        return result

    def _by_layer(self, result: "_Aligned", *, student: Features, teacher: Features, alignment: Tensor | None) -> None:
        if (len(student.layers), len(teacher.layers)) != self.shape:
            raise InputError(f"layers: {len(student.layers)} and {len(teacher.layers)}, made for {self.shape}")
        weights, at = self._places(_met_weights(student, alignment))
        owns = self._grouped([student.layers[s] for s, _ in self.pairs], at=at)
        other = self._on_grid(student, teacher=teacher, alignment=alignment)
        mapped = [self._said(self._projected(x, group)) for x, group in zip(owns, self.groups, strict=True)]
        depth, others = self.depth, [] if _is_learned(self.config) else self._grouped(other, at=at)
        raws = [masked_mean(x, weights) for x in others]
        if _is_learned(self.config):
            whole = _side_by_side(other, at=at)
            if self.training:
                self.assignment.observe(distances(self._in_order(mapped), whole, weights=weights))
            result.assignment = shares = self.assignment().to(weights.dtype)
            others = self._grouped(torch.einsum("st,tbnd->sbnd", shares, standardised(whole)).unbind())
            raws = self._grouped(torch.einsum("st,tbd->sbd", shares, masked_mean(whole, weights)).unbind())
            depth = shares @ depth
        targets = [self._said(x) for x in others]
        terms = [self._tokens(a, b, weights=weights) for a, b in zip(mapped, targets, strict=True)]
        result.cos = self._in_order([cos for cos, _ in terms])
        means = [masked_mean(x, weights) for x in owns]
        with torch.no_grad():
            rows = [(x[:, :_CKA_ROWS], y[:, :_CKA_ROWS]) for x, y in zip(means, raws, strict=True)]
            result.cka = self._in_order([linear_cka(x, y) for x, y in rows])
        result.weights = self._weights(result.cos, depth=depth)
        if "token" in self.config.levels:
            result.token = result.weights @ self._in_order([apart for _, apart in terms])
        if "layer" in self.config.levels:
            parts = zip(owns, means, mapped, targets, self.groups, strict=True)
            losses = [self._layer_loss(*part, weights=weights) for part in parts]
            result.layer = result.weights @ self._in_order(losses)

    def _grouped(self, layers: Sequence[Tensor], *, at: Tensor | None = None) -> list[Tensor]:
        """One tensor for each group of pairs of equal widths: a launch a group, not a launch a pair, on a GPU."""
        return [_side_by_side([layers[index] for index in group], at=at) for group in self.groups]

    def _in_order(self, groups: list[Tensor]) -> Tensor:
        """What was computed by group, by pair again."""
        if len(groups) == 1:
            return groups[0]
        found = {i: x for group, of in zip(self.groups, groups, strict=True) for i, x in zip(group, of, strict=True)}
        return torch.stack([found[index] for index in range(len(self.pairs))])

    def _projected(self, own: Tensor, group: tuple[int, ...]) -> Tensor:
        """A group's tokens in the teacher's space, each pair's by its own projector."""
        projectors = [self.projectors[index] for index in group]
        if isinstance(projectors[0], nn.Identity):
            return own
        weight, bias = (torch.stack([getattr(each, name) for each in projectors]) for name in ("weight", "bias"))
        return torch.baddbmm(bias[:, None], own.flatten(1, 2), weight.mT).unflatten(1, own.shape[1:3])

    def _on_grid(self, student: Features, *, teacher: Features, alignment: Tensor | None) -> list[Tensor]:
        """The teacher's tokens of each source layer, on the student's token grid."""
        tokens = [teacher.layers[t] for t in self.sources]
        n = student.layers[0].shape[1]
        if alignment is not None:
            return [alignment.to(x.dtype) @ x for x in tokens]
        if tokens[0].shape[1] == n:
            return tokens
        return self.resampler(tokens, n=n, mask=teacher.mask, student_mask=student.mask)

    def _places(self, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """The share of positions that enters, evenly spread, and their weights; None: all of them.

        The golden ratio moves them from step to step so that all get their turn.
        """
        n = weights.shape[1]
        most = n if self.config.weighting == "as_published" else math.ceil(n * self.config.token_share)
        if most == n:
            return weights, None
        places = torch.arange(most, device=weights.device) + torch.remainder(self.steps * _GOLDEN, 1.0)
        at = (places * (n / most)).long().clamp_max(n - 1)
        weights = weights[:, at]
        return weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny), at

    def _said(self, x: Tensor) -> Tensor:
        """What the student's integers can say of x."""
        return x if self.quantizer is None else self.quantizer(x)

    def _weights(self, cos: Tensor, *, depth: Tensor) -> Tensor:
        """One weight a pair. As published: cos · sigmoid(0.5·(l − 6)), with its gradient. Default: detached, sum 1."""
        if self.training:
            self._observe(cos.detach())
        if self.config.weighting == "as_published":
            return cos * depth
        if self.config.weighting == "uniform":
            return torch.full_like(depth, 1.0 / len(self.pairs))
        kept = self.config.epsilon + (1.0 - self.config.epsilon) * (1.0 + self.cos_mean) / 2.0
        shares = depth * torch.where(self.steps > self.config.warmup_steps, kept, torch.ones_like(kept))
        return shares / shares.sum()

    def _observe(self, cos: Tensor) -> None:
        """Running mean of the cosines; the first steps average plainly so that zero never enters as a value."""
        self.steps.add_(1.0)
        momentum = torch.clamp(1.0 - 1.0 / self.steps, max=self.config.cos_momentum)
        self.cos_mean.copy_(momentum * self.cos_mean + (1.0 - momentum) * cos)

    def _tokens(self, a: Tensor, b: Tensor, *, weights: Tensor) -> tuple[Tensor, Tensor]:
        """A group's mean cosines and distances over tokens."""
        if self.config.weighting == "as_published" or self.quantizer is not None:
            return mean_cosine(a, b, weights=weights), self._distance(a, b, weights=weights)
        return cosine_and_distance(a, b, weights=weights)

    def _distance(self, a: Tensor, b: Tensor, *, weights: Tensor) -> Tensor:
        """Mean squared difference; features are standardised first, except as published, so that scale is no signal.

        Under a quantizer both are standardised as the teacher's are: their common grid must survive it.
        """
        if self.config.weighting != "as_published":
            a, b = (standardised(a), standardised(b)) if self.quantizer is None else standardised_alike(a, b)
        return ((a - b).pow(2).mean(-1) * weights).sum((-2, -1)) / weights.shape[0]

    def _layer_loss(
        self, own: Tensor, mean: Tensor, mapped: Tensor, target: Tensor, group: tuple[int, ...], *, weights: Tensor
    ) -> Tensor:
        total = weights.sum(1, keepdim=True)
        if self.quantizer is None:
            # a linear map's mean is the mean's map; rows without a token have neither
            a = self._projected(mean[..., None, :], group) * total[..., None]
        else:
            a = masked_mean(mapped, weights)[..., None, :]
        loss = self._distance(a, masked_mean(target, weights)[..., None, :], weights=torch.ones_like(total))
        if self.config.relation and own.shape[-2] > 1 and self.config.weighting != "as_published":
            loss = loss + self.config.relation * similarity_loss(self._said(own), target, weights=weights)
        return loss

    def _global_loss(self, student: Features, *, teacher: Features) -> Tensor:
        a, b = self._said(self.global_projector(student.pooled))[:, None], self._said(teacher.pooled)[:, None]
        loss = self._distance(a, b, weights=a.new_ones(a.shape[0], 1))
        if self.config.weighting == "as_published" or a.shape[0] < 2:
            return loss
        return loss + functional.mse_loss(*(similarity(self._said(x)) for x in (student.pooled, teacher.pooled)))

    def _heads_loss(self, student: Features, *, teacher: Features, alignment: Tensor | None) -> Tensor:
        if not student.heads or not teacher.heads:
            raise InputError('levels: "heads" needs queries, keys and values of both models')
        weights = _met_weights(student, alignment)
        mask = None if alignment is None and student.mask is None else weights > 0
        losses = []
        for own, other in zip(reversed(student.heads), reversed(teacher.heads), strict=False):
            if alignment is not None:
                other = other.pooled_by(alignment)
            elif other.q.shape[1] != own.q.shape[1]:
                raise InputError(f"heads: {own.q.shape[1]} and {other.q.shape[1]} tokens; give their alignment")
            heads = self.config.relation_heads
            losses.append(heads_loss(own, other, relation_heads=heads, weights=weights, mask=mask))
        return torch.stack(losses).mean()


def compiled(dfad: DFAD, *, backend: str = "inductor") -> Callable[..., DFADLoss]:
    """The loss step as one graph (torch.compile, fullgraph): the same arguments, the same parameters and buffers.

    `progress` enters as a tensor, so that no new graph is made for each of its values; `alpha` comes back as one.
    """
    step = torch.compile(dfad, fullgraph=True, backend=backend)

    def run(
        student: Features, teacher: Features | None, task_loss: Tensor, progress: float | Tensor, **rest: Tensor
    ) -> DFADLoss:
        if not isinstance(progress, Tensor):
            progress = torch.full_like(task_loss.detach(), progress)
        return step(student, teacher, task_loss, progress, **rest)

    return run


@dataclass(kw_only=True)
class _Aligned:
    """The alignment losses of one batch and what was measured on the way."""

    token: Tensor
    layer: Tensor
    whole: Tensor
    weights: Tensor
    cos: Tensor
    cka: Tensor
    heads: Tensor | None = None
    assignment: Tensor | None = None

    @classmethod
    def nothing(cls, zero: Tensor) -> "_Aligned":
        empty = zero.new_zeros((0,))
        return cls(token=zero, layer=zero, whole=zero, weights=empty, cos=empty, cka=empty)

    def sum(self) -> Tensor:
        total = self.token + self.layer + self.whole
        return total if self.heads is None else total + self.heads


def _pairs(config: DFADConfig, *, teacher: int, student: int) -> Pairs:
    if config.pairing == "cka":
        raise InputError("pairs: the pairing by CKA is measured: use DFAD.measured")
    rule = "last" if config.pairing == "last" else "uniform"
    return pair_layers(teacher, student, pairing=rule)


def _is_learned(config: DFADConfig) -> bool:
    return config.pairing == "learned" and bool({"token", "layer"} & set(config.levels))


def _projector(student: int, teacher: int, *, exact: bool) -> nn.Module:
    """A learned map into the teacher's space; equal widths start at the identity (and stay there as published)."""
    if student == teacher and exact:
        return nn.Identity()
    projector = nn.Linear(student, teacher)
    if student == teacher:
        nn.init.eye_(projector.weight)
        nn.init.zeros_(projector.bias)
    return projector


def _side_by_side(layers: Sequence[Tensor], *, at: Tensor | None) -> Tensor:
    """Layers of one width as one tensor; at: of these tokens alone."""
    return torch.stack(list(layers)) if at is None else picked(layers, at)


def _met_weights(student: Features, alignment: Tensor | None) -> Tensor:
    """Weights of the student's tokens; those that no token of the teacher meets have none."""
    weights = student.token_weights(student.layers[0])
    if alignment is None:
        return weights
    weights = weights * (alignment.sum(-1) > 0).to(weights.dtype)
    return weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
