"""DFAD: dynamic feature alignment distillation, as published and mended (engine.md, section 1)."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ml_core.distill.features import Features, masked_mean
from ml_core.distill.resample import TokenResampler
from ml_core.errors import InputError

Level = Literal["token", "layer", "global"]


@dataclass(frozen=True, kw_only=True)
class DFADConfig:
    """Settings of DFAD.

    weighting: "default" (mended), "as_published" (literally the source's formula), "uniform" (plain feature KD).
    depth: the factor by depth of the default weighting, sigmoid((l − L/2)/tau) or exp(−((l − L/2)/sigma)²), where l
        counts the teacher's layers from 1 to L; tau and sigma are L/6 and L/4 unless given.
    pairing: student layer s of S meets teacher layer round(s·L/S) ("uniform") or L − S + s ("last").
    alpha: weight of the alignment at the start; it falls linearly to 0 over the training.
    epsilon: the least weight that a layer keeps, whatever its cosine.
    cos_momentum, warmup_steps: running mean of the cosines, which counts only after the warm-up.
    temperature, kl_share: matching of logits; it takes the share kl_share of the task's loss.
    relation: weight of the token-by-token similarity matrices inside the layer level.
    """

    weighting: Literal["default", "as_published", "uniform"] = "default"
    depth: Literal["sigmoid", "bell"] = "sigmoid"
    pairing: Literal["uniform", "last"] = "uniform"
    levels: tuple[Level, ...] = ("token", "layer", "global")
    alpha: float = 0.7
    epsilon: float = 0.2
    cos_momentum: float = 0.99
    warmup_steps: int = 100
    tau: float | None = None
    sigma: float | None = None
    temperature: float = 2.0
    kl_share: float = 0.5
    relation: float = 1.0


@dataclass(frozen=True, kw_only=True)
class DFADLoss:
    """The loss and its parts: `total` is what to differentiate; the rest is for logs. `weights`, `cos`: one a pair."""

    total: Float[Tensor, ""]
    task: Float[Tensor, ""]
    align_token: Float[Tensor, ""]
    align_layer: Float[Tensor, ""]
    align_global: Float[Tensor, ""]
    logits_kl: Float[Tensor, ""]
    weights: Float[Tensor, " pairs"]
    cos: Float[Tensor, " pairs"]
    alpha: float

    def align(self) -> dict[str, float]:
        """The alignment losses by level, as events want them."""
        return {
            "token": float(self.align_token.detach()),
            "layer": float(self.align_layer.detach()),
            "global": float(self.align_global.detach()),
        }


class DFAD(nn.Module):
    """total = α·align + (1 − α)·((1 − κ)·task + κ·T²·KL), α = alpha·(1 − progress), κ = kl_share.

    Its parameters (projectors, resampler) are trained with the student and thrown away after. The teacher's features
    get no gradient. `teacher_widths`, `student_widths`: one width a layer; widths of the pooled embeddings are those
    of the last layers unless given.
    """

    cos_mean: Tensor
    steps: Tensor

    def __init__(
        self,
        config: DFADConfig,
        teacher_widths: tuple[int, ...],
        student_widths: tuple[int, ...],
        *,
        teacher_pooled: int | None = None,
        student_pooled: int | None = None,
    ) -> None:
        super().__init__()
        if not teacher_widths or not student_widths:
            raise InputError("teacher_widths, student_widths: at least one layer each")
        if unknown := set(config.levels) - {"token", "layer", "global"}:
            raise InputError(f"levels: unknown {', '.join(sorted(unknown))}")
        self.config = config
        self.pairs = pair_layers(len(teacher_widths), len(student_widths), pairing=config.pairing)
        exact = config.weighting == "as_published"
        self.projectors = nn.ModuleList(
            _projector(student_widths[s], teacher_widths[t], exact=exact) for s, t in self.pairs
        )
        pooled = (student_pooled or student_widths[-1], teacher_pooled or teacher_widths[-1])
        self.global_projector = _projector(*pooled, exact=exact)
        self.resampler = TokenResampler(teacher_widths[self.pairs[-1][1]])
        depth = depth_factors(config, [t + 1 for _, t in self.pairs], layers=len(teacher_widths))
        self.register_buffer("depth", depth, persistent=False)
        self.register_buffer("cos_mean", torch.zeros(len(self.pairs)))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, student: Features, teacher: Features, task_loss: Float[Tensor, ""], progress: float) -> DFADLoss:
        """One batch's loss; `progress` is the share of the training done, in [0, 1].

        In training mode it also moves the running mean of the cosines.
        """
        teacher = teacher.detach()
        weights = student.token_weights(student.layers[0])
        mapped = [project(student.layers[s]) for project, (s, _) in zip(self.projectors, self.pairs, strict=True)]
        targets = self._targets(mapped, student=student, teacher=teacher)
        cos = torch.stack([_mean_cosine(m, t, weights=weights) for m, t in zip(mapped, targets, strict=True)])
        shares = self._weights(cos)
        token, layer, whole = (task_loss.new_zeros(()) for _ in range(3))
        if "token" in self.config.levels:
            token = shares @ torch.stack(
                [self._distance(m, t, weights=weights) for m, t in zip(mapped, targets, strict=True)]
            )
        if "layer" in self.config.levels:
            layer = shares @ self._layer_losses(mapped, targets=targets, student=student, weights=weights)
        if "global" in self.config.levels:
            whole = self._global_loss(student, teacher=teacher)
        kl = logits_kl(student, teacher=teacher, temperature=self.config.temperature)
        share = self.config.kl_share if student.logits is not None and teacher.logits is not None else 0.0
        alpha = self.config.alpha * (1.0 - progress)
        task = (1.0 - share) * task_loss + share * self.config.temperature**2 * kl
        return DFADLoss(
            total=alpha * (token + layer + whole) + (1.0 - alpha) * task,
            task=task_loss,
            align_token=token,
            align_layer=layer,
            align_global=whole,
            logits_kl=kl,
            weights=shares,
            cos=cos,
            alpha=alpha,
        )

    def _targets(self, mapped: list[Tensor], *, student: Features, teacher: Features) -> list[Tensor]:
        """The teacher's tokens of each pair, on the student's token grid."""
        tokens = [teacher.layers[t] for _, t in self.pairs]
        if tokens[0].shape[1] == mapped[0].shape[1]:
            return tokens
        return self.resampler(tokens, n=mapped[0].shape[1], mask=teacher.mask, student_mask=student.mask)

    def _weights(self, cos: Tensor) -> Tensor:
        """One weight a pair. As published: cos · sigmoid(0.5·(l − 6)), with its gradient. Default: detached, sum 1."""
        if self.config.weighting == "as_published":
            return cos * self.depth
        if self.config.weighting == "uniform":
            return torch.full_like(self.depth, 1.0 / len(self.pairs))
        cos = cos.detach()
        if self.training:
            self._observe(cos)
        kept = self.config.epsilon + (1.0 - self.config.epsilon) * (1.0 + self.cos_mean) / 2.0
        shares = self.depth * torch.where(self.steps > self.config.warmup_steps, kept, torch.ones_like(kept))
        return shares / shares.sum()

    def _observe(self, cos: Tensor) -> None:
        """Running mean of the cosines; the first steps average plainly so that zero never enters as a value."""
        self.steps.add_(1.0)
        momentum = torch.clamp(1.0 - 1.0 / self.steps, max=self.config.cos_momentum)
        self.cos_mean.copy_(momentum * self.cos_mean + (1.0 - momentum) * cos)

    def _distance(self, a: Tensor, b: Tensor, *, weights: Tensor) -> Tensor:
        """Mean squared difference; features are standardised first, except as published, so that scale is no signal."""
        if self.config.weighting != "as_published":
            a, b = _standardised(a), _standardised(b)
        squared = (a - b).pow(2).mean(-1)
        return (squared * weights).sum() / squared.shape[0]

    def _layer_losses(
        self, mapped: list[Tensor], *, targets: list[Tensor], student: Features, weights: Tensor
    ) -> Tensor:
        losses = []
        one = weights.new_ones(weights.shape[0], 1)
        for (s, _), a, b in zip(self.pairs, mapped, targets, strict=True):
            pooled_a, pooled_b = masked_mean(a, weights)[:, None], masked_mean(b, weights)[:, None]
            loss = self._distance(pooled_a, pooled_b, weights=one)
            if self.config.relation and a.shape[1] > 1 and self.config.weighting != "as_published":
                loss = loss + self.config.relation * _relation_loss(student.layers[s], b, weights=weights)
            losses.append(loss)
        return torch.stack(losses)

    def _global_loss(self, student: Features, *, teacher: Features) -> Tensor:
        a, b = self.global_projector(student.pooled)[:, None], teacher.pooled[:, None]
        loss = self._distance(a, b, weights=a.new_ones(a.shape[0], 1))
        if self.config.weighting == "as_published" or a.shape[0] < 2:
            return loss
        return loss + functional.mse_loss(_similarity(student.pooled), _similarity(teacher.pooled))


def pair_layers(teacher: int, student: int, *, pairing: Literal["uniform", "last"]) -> tuple[tuple[int, int], ...]:
    """(student layer, teacher layer) from 0, one pair a student layer; a deeper student repeats teacher layers."""
    if pairing == "last":
        return tuple((s, max(0, teacher - student + s)) for s in range(student))
    return tuple((s, max(0, round((s + 1) * teacher / student) - 1)) for s in range(student))


def depth_factors(config: DFADConfig, depths: list[int], *, layers: int) -> Float[Tensor, " pairs"]:
    """The factor by depth of each pair; `depths` count the teacher's layers from 1 to `layers`."""
    at = torch.tensor(depths, dtype=torch.float32)
    if config.weighting == "as_published":
        return torch.sigmoid(0.5 * (at - 6.0))
    centred = at - layers / 2.0
    if config.depth == "bell":
        return torch.exp(-((centred / (config.sigma or layers / 4.0)) ** 2))
    return torch.sigmoid(centred / (config.tau or layers / 6.0))


def logits_kl(student: Features, *, teacher: Features, temperature: float) -> Float[Tensor, ""]:
    """KL(teacher ‖ student) of the tempered distributions, mean over everything but the classes; 0 without logits.

    One class means one Bernoulli logit. Token-wise logits (b, n, c) with a student mask average over real tokens.
    Hinton et al. 2015; the factor T² is the caller's.
    """
    if student.logits is None or teacher.logits is None:
        return student.pooled.new_zeros(())
    if student.logits.shape != teacher.logits.shape:
        raise InputError(f"logits: student {tuple(student.logits.shape)}, teacher {tuple(teacher.logits.shape)}")
    own, other = student.logits / temperature, teacher.logits / temperature
    if own.ndim == 1 or own.shape[-1] == 1:
        own, other = own.reshape(own.shape[0], -1, 1), other.reshape(own.shape[0], -1, 1)
        own = torch.cat([own, torch.zeros_like(own)], -1)
        other = torch.cat([other, torch.zeros_like(other)], -1)
    target = other.log_softmax(-1)
    divergence = (target.exp() * (target - own.log_softmax(-1))).sum(-1)
    if student.mask is not None and student.logits.ndim == 3 and divergence.shape == student.mask.shape:
        mask = student.mask.to(divergence.dtype)
        return (divergence * mask).sum() / mask.sum().clamp_min(1.0)
    return divergence.mean()


def _projector(student: int, teacher: int, *, exact: bool) -> nn.Module:
    """A learned map into the teacher's space; equal widths start at the identity (and stay there as published)."""
    if student == teacher and exact:
        return nn.Identity()
    projector = nn.Linear(student, teacher)
    if student == teacher:
        nn.init.eye_(projector.weight)
        nn.init.zeros_(projector.bias)
    return projector


def _standardised(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:])


def _mean_cosine(a: Tensor, b: Tensor, *, weights: Tensor) -> Tensor:
    return (functional.cosine_similarity(a, b, dim=-1) * weights).sum() / a.shape[0]


def _similarity(x: Tensor) -> Tensor:
    unit = functional.normalize(x, dim=-1)
    return unit @ unit.transpose(-1, -2)


def _relation_loss(a: Tensor, b: Tensor, *, weights: Tensor) -> Tensor:
    """Squared difference of the token-by-token cosine matrices, padding left out."""
    squared = (_similarity(a) - _similarity(b)).pow(2)
    return torch.einsum("bnm,bn,bm->", squared, weights, weights) / a.shape[0]
