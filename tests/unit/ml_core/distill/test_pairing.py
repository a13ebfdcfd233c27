"""Pairing: by measured CKA, and learned with the student."""

from dataclasses import replace

import pytest
import torch

from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.pairing import Assignment, cka_measured, cka_pairs
from ml_core.errors import InputError

TASK = torch.tensor(1.0, dtype=torch.float64)


def planted(features, *, of, seed=0):
    """A teacher of five layers and a student whose layers are turned copies of the teacher's layers `of`."""
    teacher = features(b=8, n=6, widths=(10,) * 5, seed=seed + 1)
    turn = torch.linalg.qr(features(b=1, n=10, widths=(10,), seed=77).layers[0][0])[0]
    student = features(b=8, n=6, widths=(10,) * len(of), seed=seed + 50)
    return replace(student, layers=tuple(teacher.layers[t] @ turn for t in of)), teacher


@pytest.mark.parametrize("of", [(0, 1), (1, 3), (3, 4), (0, 2, 4)])
def test_cka_finds_the_planted_layers_and_twice_the_same(features, of):
    shown = [planted(features, of=of, seed=seed) for seed in (0, 100)]
    config = DFADConfig(pairing="cka")
    first, second = (DFAD.measured(config, shown).pairs for _ in range(2))
    assert first == second == tuple(enumerate(of))


def test_pairs_keep_the_order_of_depth():
    table = torch.tensor([[0.1, 0.2, 0.9], [0.9, 0.5, 0.3]])
    assert cka_pairs(table) == ((0, 1), (1, 2)) or cka_pairs(table) == ((0, 0), (1, 1))
    assert cka_pairs(torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]])) == ((0, 0), (1, 1))


def test_a_deeper_student_shares_teacher_layers():
    pairs = cka_pairs(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]]))
    assert pairs == ((0, 0), (1, 0), (2, 1))


def test_unequal_token_counts_and_padding_are_measured_on_means(features):
    mask = torch.arange(6)[None, :] < torch.tensor([6, 4, 3, 6, 5, 6, 2, 6])[:, None]
    student = features(b=8, n=6, widths=(4, 4), mask=mask)
    teacher = features(b=8, n=3, widths=(7, 7, 7), seed=1)
    assert cka_measured([(student, teacher)]).shape == (2, 3)
    dirty = replace(student, layers=tuple(x.masked_fill(~mask[..., None], 1e3) for x in student.layers))
    assert torch.allclose(cka_measured([(student, teacher)]), cka_measured([(dirty, teacher)]))


def test_cka_without_a_measurement_or_enough_rows_is_refused(features):
    with pytest.raises(InputError, match="measured"):
        DFAD(DFADConfig(pairing="cka"), (8,), (8,))
    with pytest.raises(InputError, match="four rows"):
        DFAD.measured(DFADConfig(pairing="cka"), [(features(b=1, n=3), features(b=1, n=3, seed=1))])
    with pytest.raises(InputError, match="at least one batch"):
        DFAD.measured(DFADConfig(), [])


def test_a_state_of_other_pairs_is_refused(features):
    one, other = (DFAD.measured(DFADConfig(pairing="cka"), [planted(features, of=of)]) for of in ((0, 1), (1, 3)))
    one.load_state_dict(one.state_dict())
    with pytest.raises(InputError, match="pairs"):
        one.load_state_dict(other.state_dict())


def test_a_learned_assignment_begins_near_the_uniform_pairing_and_finds_the_planted_layer(features):
    torch.manual_seed(0)
    dfad = DFAD(DFADConfig(pairing="learned", kl_share=0.0, levels=("token", "layer")), (10,) * 5, (10, 10)).double()
    assert dfad.assignment().argmax(1).tolist() == [1, 4]
    optimizer = torch.optim.AdamW(dfad.parameters(), lr=3e-3)
    for step in range(300):
        student, teacher = planted(features, of=(0, 3), seed=1000 + step)
        loss = dfad(student, teacher, TASK, 0.0)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    shares = dfad.assignment().detach()
    assert shares.argmax(1).tolist() == [0, 3]
    assert torch.allclose(shares.sum(1), torch.ones(2, dtype=torch.float64))


def test_the_assignment_is_the_minimum_that_it_says_it_is():
    assignment = Assignment(DFADConfig(assignment_temperature=0.3), teacher=4, student=2)
    assignment.observe(torch.tensor([[0.2, 0.5, 0.1, 0.9], [1.0, 0.3, 0.4, 0.2]]))

    def objective(shares):
        divergence = shares * (shares.log() - assignment.prior.log_softmax(-1))
        return float((shares * assignment.distances).sum() + 0.3 * divergence.sum())

    best = objective(assignment())
    for seed in range(20):
        noise = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed))
        assert objective((assignment().log() + 0.3 * noise).softmax(-1)) > best


def test_the_assignment_has_no_gradient_and_no_parameter_and_stands_still_in_eval_mode(features):
    dfad = DFAD(DFADConfig(pairing="learned", kl_share=0.0), (8, 8, 8), (8, 8)).double()
    student = features(requires_grad=True)
    loss = dfad(student, features(widths=(8, 8, 8), seed=1), TASK, 0.0)
    assert loss.assignment.requires_grad is False
    assert list(dfad.assignment.parameters()) == []
    before = dfad.eval().assignment().clone()
    dfad(student, features(widths=(8, 8, 8), seed=2), TASK, 0.0)
    assert torch.equal(dfad.assignment(), before)
    assert float(dfad.train().assignment.steps) == 1


def test_a_learned_assignment_wants_one_width_and_the_mended_weights():
    with pytest.raises(InputError, match="one width"):
        DFAD(DFADConfig(pairing="learned"), (8, 6), (8,))
    with pytest.raises(InputError, match="as published"):
        DFAD(DFADConfig(pairing="learned", weighting="as_published"), (8, 8), (8,))
