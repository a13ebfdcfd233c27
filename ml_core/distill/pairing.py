"""Which student layer meets which teacher layer: by rule, by measured CKA, or learned as a soft assignment."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ml_core.distill.cka import cka_table
from ml_core.distill.features import Features, masked_mean
from ml_core.distill.spec import DFADConfig
from ml_core.errors import InputError

Pairs = tuple[tuple[int, int], ...]
CALIBRATION_ROWS = 512  # of one batch; the Gram matrices grow with the square


def pair_layers(teacher: int, student: int, *, pairing: Literal["uniform", "last"]) -> Pairs:
    """(student layer, teacher layer) from 0, one pair a student layer; a deeper student repeats teacher layers."""
    if pairing == "last":
        return tuple((s, max(0, teacher - student + s)) for s in range(student))
    return tuple((s, max(0, round((s + 1) * teacher / student) - 1)) for s in range(student))


def cka_pairs(table: Float[Tensor, "s t"]) -> Pairs:
    """The pairing in order of depth whose sum of CKA is largest; equal sums take the earlier teacher layers.

    No teacher layer is taken twice unless the student is the deeper one. Deterministic: no draw, no training.
    """
    values = table.tolist()
    if not values or not values[0]:
        raise InputError("cka: the calibration batches have fewer than four rows")
    students, teachers = len(values), len(values[0])
    step = 1 if teachers >= students else 0
    best: list[list[tuple[float, Pairs]]] = []
    for s in range(students):
        row: list[tuple[float, Pairs]] = []
        for t in range(teachers):
            before = best[s - 1][: t + 1 - step] if s else [(0.0, ())]
            total, path = max(before, key=lambda entry: entry[0], default=(-float("inf"), ()))
            row.append((total + values[s][t], (*path, (s, t))))
        best.append(row)
    return max(best[-1], key=lambda entry: entry[0])[1]


def cka_measured(shown: Sequence[tuple[Features, Features]]) -> Float[Tensor, "s t"]:
    """CKA of every (student layer, teacher layer) on batches of (student, teacher) features.

    Rows are real tokens where both have the same grid, else means over tokens; at most CALIBRATION_ROWS of a batch,
    evenly spread.
    """
    return cka_table([_rows(student.detach(), teacher.detach()) for student, teacher in shown])


class Assignment(nn.Module):
    """A soft assignment of student layers to teacher layers that is learned while the student is.

    It is the minimum of Σ A·D + τ·KL(A ‖ prior) over rows A that sum to 1, which is A ∝ prior·exp(−D/τ): D are the
    running means of the distances between projected student layers and teacher layers, the prior prefers the uniform
    pairing, τ is assignment_temperature. Solved, not descended to: AdamW at the source's rate of 3e-5 would never move
    logits, and at 1e-3 throws them about. Everything here is detached, so the student cannot lower its loss by turning
    the assignment to whatever is easy; it can only come nearer to a layer.
    """

    prior: Tensor
    distances: Tensor
    steps: Tensor

    def __init__(self, config: DFADConfig, *, teacher: int, student: int) -> None:
        super().__init__()
        at = torch.tensor([t for _, t in pair_layers(teacher, student, pairing="uniform")])
        away = (at[:, None] - torch.arange(teacher)[None, :]).abs().float()
        self.temperature, self.momentum = config.assignment_temperature, config.cos_momentum
        self.register_buffer("prior", -away * student / teacher, persistent=False)
        self.register_buffer("distances", torch.zeros(student, teacher))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self) -> Float[Tensor, "s t"]:
        """Rows sum to 1; without gradient."""
        return (self.prior - self.distances / self.temperature).softmax(-1)

    @torch.no_grad()
    def observe(self, distances: Float[Tensor, "s t"]) -> None:
        """Take one batch's distances into the running means; the first ones average plainly."""
        self.steps.add_(1.0)
        momentum = torch.clamp(1.0 - 1.0 / self.steps, max=self.momentum)
        self.distances.copy_(momentum * self.distances + (1.0 - momentum) * distances)


def _rows(student: Features, teacher: Features) -> tuple[list[Tensor], list[Tensor]]:
    if student.layers[0].shape[1] != teacher.layers[0].shape[1]:
        return _pooled(student), _pooled(teacher)
    keep = torch.ones(student.layers[0].shape[:2], dtype=torch.bool, device=student.layers[0].device)
    for mask in (student.mask, teacher.mask):
        keep = keep if mask is None else keep & mask
    at = keep.flatten().nonzero().flatten()
    at = at[:: max(1, -(-len(at) // CALIBRATION_ROWS))]
    return [x.flatten(0, 1)[at] for x in student.layers], [x.flatten(0, 1)[at] for x in teacher.layers]


def _pooled(shown: Features) -> list[Tensor]:
    weights = shown.token_weights(shown.layers[0])
    return [masked_mean(layer, weights)[:CALIBRATION_ROWS] for layer in shown.layers]
