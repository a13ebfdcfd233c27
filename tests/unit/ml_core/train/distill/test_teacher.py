"""The teacher: features from memory are those that it gives live, and it is trained once."""

from dataclasses import replace

import pytest
import torch
from testkit.text import text_checkpoint, text_table

from ml_core.distill.tasks import digits, text
from ml_core.train.distill import memory, teacher
from ml_core.train.distill.model import token_tensors


@pytest.fixture(params=[0, 1], ids=["cnn", "vit"])
def case(request):
    return digits.cases(quick=True)[request.param]


def ready(case, folder):
    return teacher.teacher_ready(case, case.load(), folder=folder, device=torch.device("cpu"), cached=False)


def test_features_from_memory_are_the_live_ones(case, tmp_path, monkeypatch):
    kept = ready(case, tmp_path)
    monkeypatch.setitem(memory._MOST, "cpu", 0)
    live = ready(case, tmp_path)
    batch = case.load().train.batch(torch.tensor([200, 5, 77]))
    ours, theirs = kept.show(batch), live.show(batch)
    assert ours.names == theirs.names
    assert [taps.name for taps in ours.heads] == [taps.name for taps in theirs.heads]
    for a, b in zip(all_tensors(ours), all_tensors(theirs), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert kept.digest == live.digest


def test_rows_of_unequal_length_come_from_memory_without_their_padding(tmp_path, monkeypatch):
    root = text_checkpoint(tmp_path / "mpnet-tiny", kind="mpnet")
    text_table(tmp_path / "data" / "sst2", rows=40)
    case = text.cases(tmp_path / "data", teacher=root, quick=True)[0]
    kept = ready(case, tmp_path)
    monkeypatch.setitem(memory._MOST, "cpu", 0)
    live = ready(case, tmp_path)
    assert isinstance(kept.show, memory.FeatureMemory)
    assert not isinstance(live.show, memory.FeatureMemory)
    task = case.load()
    lengths = task.train.inputs["length"]
    batch = task.prepare(task.train.batch(torch.stack([lengths.argmin(), lengths.argmax()])))
    ours, theirs = kept.show(batch), live.show(batch)
    assert torch.equal(ours.mask, theirs.mask)
    assert not theirs.mask.all()
    (tokens, rows), (other_tokens, other_rows) = token_tensors(ours), token_tensors(theirs)
    assert len(tokens) == 6 + 3
    for a, b in zip(tokens, other_tokens, strict=True):
        assert torch.allclose(a[ours.mask], b[ours.mask], atol=1e-5)
        assert torch.isfinite(a).all()
    for a, b in zip(rows, other_rows, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_what_a_teacher_says_of_the_test_split_is_computed_once(case, tmp_path, monkeypatch):
    first = ready(case, tmp_path)
    monkeypatch.setattr(teacher, "logits_of", lambda *a, **k: pytest.fail("computed again"))
    again = ready(case, tmp_path)
    assert again.said.values == first.said.values
    assert (again.said.outputs == first.said.outputs).all()


def all_tensors(shown):
    tokens, rows = token_tensors(shown)
    return [*tokens, *rows]


def test_a_trained_teacher_is_found_again_and_other_settings_are_another_one(case, tmp_path, monkeypatch):
    first = ready(case, tmp_path)
    slower = replace(case, teacher=replace(case.teacher, fit=replace(case.teacher.fit, lr=1e-5)))
    assert ready(slower, tmp_path).digest != first.digest
    monkeypatch.setattr(teacher, "model_train", lambda *a, **k: pytest.fail("trained again"))
    assert ready(case, tmp_path).digest == first.digest


def test_nine_places_of_a_picture_keep_its_label_and_its_ink():
    task = digits.digits(train=96, dev=64, test=96)
    assert len(task.train) == 9 * 96
    middle = task.train.inputs["image"][4 * 96 : 5 * 96]
    assert torch.equal(task.train.inputs["image"][:96][:, :, 1:, 1:], middle[:, :, :-1, :-1])
    assert torch.equal(task.train.labels[:96], task.train.labels[4 * 96 : 5 * 96])
