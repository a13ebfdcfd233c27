"""Every baseline is a config of the same loss, and is what its name says."""

import pytest
import torch

from ml_core.config import from_mapping, to_mapping
from ml_core.distill import presets
from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.logits import logits_kl
from ml_core.errors import InputError

TASK = torch.tensor(2.0, dtype=torch.float64)


def loss_of(config, features, *, progress=0.0):
    student = features(logits=(3,), heads=(12,), requires_grad=True)
    teacher = features(widths=(10,) * 4, logits=(3,), heads=(24,), seed=1)
    torch.manual_seed(0)
    return DFAD(config, (10,) * 4, (8, 8)).double()(student, teacher, TASK, progress), student, teacher


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_every_preset_goes_through_json_and_gives_a_loss_with_gradient(name, features):
    config = presets.PRESETS[name]()
    assert from_mapping(DFADConfig, to_mapping(config)) == config
    loss, student, _ = loss_of(config, features)
    assert torch.isfinite(loss.total)
    if name != "ce_only":
        (loss.total + student.pooled.sum() * 0.0).backward()
        shown = [*student.layers, student.pooled, student.logits, *(x for t in student.heads for x in (t.q, t.k, t.v))]
        assert any(x.grad is not None and float(x.grad.abs().sum()) > 0 for x in shown)


def test_the_task_alone_wants_no_teacher_and_no_parameters(features):
    dfad = DFAD(presets.ce_only(), (10,) * 4, (8, 8)).double()
    assert float(dfad(features(logits=(3,)), None, TASK, 0.3).total) == 2.0
    assert list(dfad.parameters()) == []
    with pytest.raises(InputError, match="teacher"):
        DFAD(presets.plain_kd(), (10,) * 4, (8, 8))(features(), None, TASK, 0.0)


def test_plain_kd_is_the_textbook_mixture_at_any_progress(features):
    for progress in (0.0, 0.9):
        loss, student, teacher = loss_of(presets.plain_kd(temperature=3.0, share=0.7), features, progress=progress)
        kl = logits_kl(student, teacher=teacher, temperature=3.0)
        assert float(loss.total.detach()) == pytest.approx(0.3 * 2.0 + 0.7 * 9.0 * float(kl.detach()))


def test_fitnets_weighs_layers_equally_and_has_tokens_alone(features):
    loss, *_ = loss_of(presets.fitnets(), features)
    assert loss.weights.tolist() == [0.5, 0.5]
    assert float(loss.align_token.detach()) > 0
    assert float(loss.align_layer.detach()) == float(loss.align_global.detach()) == 0.0


def test_minilm_has_relations_alone_and_no_projector(features):
    loss, *_ = loss_of(presets.minilm(relation_heads=6), features)
    assert float(loss.align_heads.detach()) > 0
    assert float((loss.align_token + loss.align_layer + loss.align_global).detach()) == 0.0
    assert float(loss.total.detach()) == pytest.approx(0.7 * float(loss.align_heads.detach()) + 0.3 * 2.0)


def test_as_published_matches_no_logits_and_the_default_may_add_relations(features):
    published, *_ = loss_of(presets.as_published(), features)
    align = float((published.align_token + published.align_layer + published.align_global).detach())
    assert float(published.total.detach()) == pytest.approx(0.7 * align + 0.3 * 2.0)
    assert presets.default() == DFADConfig()
    assert loss_of(presets.default(heads=True), features)[0].align_heads is not None
