"""Text cases from a tiny checkpoint and tiny parquet files: tokens, splits, students, the table of ids."""

import pytest
import torch
from testkit.text import text_checkpoint, text_table

from ml_core.distill.tasks import text, text_models
from ml_core.errors import InputError
from ml_core.models.transformers_shim import transformers_import


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    text_table(root / "data" / "sst2", rows=40)
    text_table(root / "data" / "mrpc", rows=40, pair=True)
    text_table(root / "data" / "clinc150", rows=40, names=("a", "b", "oos"))
    return (
        root / "data",
        text_checkpoint(root / "mpnet-tiny", kind="mpnet"),
        text_checkpoint(root / "mini", kind="bert"),
    )


def test_cases_say_teacher_student_task_and_what_the_student_starts_from(places):
    data, teacher, mini = places
    cases = {case.name: case for case in text.cases(data, teacher=teacher, student=mini)}
    assert len(cases) == 3 * len(text_models.STUDENTS)
    assert cases["mpnet>bert6x384/sst2"].student.start == "pretrained (mini)"
    assert cases["mpnet>layers4x768/mrpc"].student.start.startswith("teacher's layers")
    assert cases["mpnet>factor4x768/sst2"].student.start == "random"
    without = {case.name: case for case in text.cases(data, teacher=teacher)}
    assert without["mpnet>bert6x384/sst2"].student.start == "random"


def test_a_folder_without_known_sets_is_refused(tmp_path, places):
    with pytest.raises(InputError, match="sst2"):
        text.cases(tmp_path, teacher=places[1])


def test_splits_are_disjoint_and_pairs_are_one_sequence(places):
    data, teacher, _ = places
    task = text.text_task(data, name="mrpc", tokenizer=teacher)
    assert (len(task.train), len(task.dev), len(task.test)) == (36, 4, 40)
    batch = task.prepare(task.train.batch(torch.tensor([0, 1])))
    assert (batch["ids"] == 2).sum(1).tolist() == [2, 2]  # two ends: one a text
    assert batch["mask"].sum(1).tolist() == batch["length"].tolist()
    assert batch["ids"].shape[1] == min(16, task.train.inputs["ids"].shape[1]) >= int(batch["length"].max())
    assert list(task.metrics) == ["f1", "accuracy"]


def test_out_of_scope_is_a_metric_where_there_is_such_a_class(places):
    task = text.text_task(places[0], name="clinc150", tokenizer=places[1])
    assert list(task.metrics) == ["in-scope accuracy", "out-of-scope recall", "accuracy"]
    assert task.classes == 3


def test_a_pretrained_student_gets_its_own_ids_of_the_same_words(places):
    _, teacher, mini = places
    model = text_models.student("bert6x384", starts=text_models.Starts(teacher=teacher, student=mini), classes=2)
    auto = transformers_import().AutoTokenizer
    theirs, mine = (auto.from_pretrained(folder) for folder in (teacher, mini))
    ids = theirs(["the film was very good"])["input_ids"]
    assert model.table[torch.tensor(ids)].tolist() == mine(["the film was very good"])["input_ids"]
    assert model.table[theirs.pad_token_id] == mine.pad_token_id


def test_the_copied_student_starts_from_the_teachers_layers_evenly_spread(places):
    teacher = places[1]
    whole = text_models.teacher(teacher, classes=2).taps.model
    student = text_models.student("layers4x768", starts=text_models.Starts(teacher=teacher), classes=2).taps.model
    kept = [1, 2, 3, 5]
    assert len(student.encoder.layer) == 4
    for own, index in zip(student.encoder.layer, kept, strict=True):
        other = whole.encoder.layer[index].state_dict()
        assert all(torch.equal(value, other[name]) for name, value in own.state_dict().items())


@pytest.mark.parametrize(("name", "millions"), [("bert6x384", 22.7), ("factor4x768", 21.4), ("factor4x256", 5.2)])
def test_random_students_have_the_sizes_that_they_are_called_by(name, millions, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mpnet", "vocab_size": 30527, "hidden_size": 768}')
    with torch.device("meta"):
        model = text_models.student(name, starts=text_models.Starts(teacher=tmp_path), classes=2)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.35)
    assert text_models.relation_heads(tmp_path, name) in {8, 12}
    if name == "factor4x256":
        assert 109.5 / millions > 16


def test_an_unknown_student_is_an_error(places):
    with pytest.raises(InputError, match="bert6x384"):
        text_models.student("nix", starts=text_models.Starts(teacher=places[1]), classes=2)
