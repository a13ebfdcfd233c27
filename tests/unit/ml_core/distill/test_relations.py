"""MiniLMv2's relations: the printed formula, padding, widths, and where they are refused."""

import math
from dataclasses import replace

import pytest
import torch

from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.relations import heads_loss
from ml_core.errors import InputError

TASK = torch.tensor(0.0, dtype=torch.float64)
CONFIG = DFADConfig(levels=("heads",), alpha=1.0, kl_share=0.0, relation_heads=2)


def by_hand(own, other, *, heads):
    """Σ over q, k, v of the mean KL of the relation rows, with loops."""
    total = 0.0
    for a, b in ((own.q, other.q), (own.k, other.k), (own.v, other.v)):
        rows = []
        for i in range(a.shape[0]):
            for h in range(heads):
                p, q = (
                    torch.softmax(
                        x[i].chunk(heads, -1)[h] @ x[i].chunk(heads, -1)[h].T / math.sqrt(x.shape[-1] / heads), -1
                    )
                    for x in (b, a)
                )
                rows.append((p * (p / q).log()).sum(-1).mean())
        total += float(torch.stack(rows).mean())
    return total


def test_the_loss_is_the_printed_formula_across_widths(features):
    student, teacher = features(heads=(8,)), features(heads=(12,), seed=1)
    weights = student.token_weights(student.layers[0])
    loss = heads_loss(student.heads[0], teacher.heads[0], relation_heads=2, weights=weights)
    assert float(loss) == pytest.approx(by_hand(student.heads[0], teacher.heads[0], heads=2))


def test_equal_relations_are_no_loss_though_the_heads_are_turned(features):
    teacher = features(heads=(8,))
    turn = torch.linalg.qr(features(b=1, n=8, seed=5).layers[0][0])[0]
    turned = replace(teacher, heads=tuple(replace(t, q=t.q @ turn, k=-t.k, v=t.v @ turn) for t in teacher.heads))
    weights = teacher.token_weights(teacher.layers[0])
    loss = heads_loss(turned.heads[0], teacher.heads[0], relation_heads=1, weights=weights)
    assert float(loss) == pytest.approx(0.0, abs=1e-12)


def test_padding_changes_nothing(features):
    mask = torch.tensor([[True] * 3 + [False] * 2] * 3)
    student, teacher = features(heads=(8,), mask=mask), features(heads=(8,), seed=1, mask=mask)
    dirty = replace(student, heads=tuple(replace(t, q=t.q.masked_fill(~mask[..., None], 1e3)) for t in student.heads))
    dfad = DFAD(CONFIG, (8, 8), (8, 8)).double()
    clean, padded = (float(dfad(given, teacher, TASK, 0.0).total) for given in (student, dirty))
    assert math.isfinite(clean)
    assert clean == pytest.approx(padded)


def test_no_projector_is_needed_and_the_last_taps_meet(features):
    dfad = DFAD(CONFIG, (12,) * 6, (8, 8))
    assert list(dfad.parameters()) == []
    student, teacher = features(heads=(8,)), features(heads=(12, 12), widths=(12,) * 6, seed=1)
    loss = dfad(student, teacher, TASK, 0.0)
    expected = by_hand(student.heads[0], teacher.heads[-1], heads=2)
    assert float(loss.total) == pytest.approx(expected)
    assert loss.align()["heads"] == pytest.approx(expected)
    assert loss.weights.numel() == loss.cos.numel() == 0


def test_the_student_learns_the_teacher_s_relations(features):
    student, teacher = features(heads=(8,), requires_grad=True), features(heads=(12,), seed=1)
    dfad = DFAD(CONFIG, (8, 8), (8, 8)).double()
    taps = student.heads[0]
    optimizer = torch.optim.Adam([taps.q, taps.k, taps.v], lr=0.05)
    losses = []
    for _ in range(150):
        loss = dfad(student, teacher, TASK, 0.0).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.05 * losses[0]


def test_missing_taps_indivisible_widths_and_unequal_counts_are_refused(features):
    dfad = DFAD(CONFIG, (8, 8), (8, 8)).double()
    with pytest.raises(InputError, match="needs queries"):
        dfad(features(), features(heads=(8,), seed=1), TASK, 0.0)
    with pytest.raises(InputError, match="do not divide the width 7"):
        dfad(features(heads=(8,)), features(heads=(7,), seed=1), TASK, 0.0)
    with pytest.raises(InputError, match="5 and 6 tokens"):
        dfad(features(heads=(8,)), features(n=6, heads=(8,), seed=1), TASK, 0.0)


def test_half_precision_is_computed_in_single(features):
    student, teacher = (features(heads=(8,), seed=s, dtype=torch.float32) for s in (0, 1))
    half = [
        replace(t.heads[0], q=t.heads[0].q.bfloat16(), k=t.heads[0].k.bfloat16(), v=t.heads[0].v.bfloat16())
        for t in (student, teacher)
    ]
    weights = student.token_weights(student.layers[0])
    loss = heads_loss(*half, relation_heads=2, weights=weights)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(
        float(heads_loss(student.heads[0], teacher.heads[0], relation_heads=2, weights=weights)), rel=0.05
    )
