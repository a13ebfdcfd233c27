"""The teacher: features from memory are those that it gives live, and it is trained once."""

from dataclasses import replace

import pytest
import torch

from ml_core.distill.tasks import digits
from ml_core.train.distill import teacher
from ml_core.train.distill.model import tensors_of


@pytest.fixture(params=[0, 1], ids=["cnn", "vit"])
def case(request):
    return digits.cases(quick=True)[request.param]


def ready(case, folder):
    return teacher.teacher_ready(case, case.load(), folder=folder, device=torch.device("cpu"), cached=False)


def test_features_from_memory_are_the_live_ones(case, tmp_path, monkeypatch):
    kept = ready(case, tmp_path)
    monkeypatch.setattr(teacher, "_IN_MEMORY", 0)
    live = ready(case, tmp_path)
    batch = case.load().train.batch(torch.tensor([200, 5, 77]))
    ours, theirs = kept.show(batch), live.show(batch)
    assert ours.names == theirs.names
    assert [taps.name for taps in ours.heads] == [taps.name for taps in theirs.heads]
    for a, b in zip(tensors_of(ours), tensors_of(theirs), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert kept.digest == live.digest


def test_a_trained_teacher_is_found_again_and_other_settings_are_another_one(case, tmp_path, monkeypatch):
    first = ready(case, tmp_path)
    slower = replace(case, teacher=replace(case.teacher, fit=replace(case.teacher.fit, lr=1e-5)))
    assert ready(slower, tmp_path).recipe != first.recipe
    monkeypatch.setattr(teacher, "model_train", lambda *a, **k: pytest.fail("trained again"))
    assert ready(case, tmp_path).digest == first.digest


def test_nine_places_of_a_picture_keep_its_label_and_its_ink():
    task = digits.digits(train=96, dev=64, test=96)
    assert len(task.train) == 9 * 96
    middle = task.train.inputs["image"][4 * 96 : 5 * 96]
    assert torch.equal(task.train.inputs["image"][:96][:, :, 1:, 1:], middle[:, :, :-1, :-1])
    assert torch.equal(task.train.labels[:96], task.train.labels[4 * 96 : 5 * 96])
