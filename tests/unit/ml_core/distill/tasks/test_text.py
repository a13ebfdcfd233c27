"""Text cases from a tiny checkpoint and tiny parquet files: tokens, splits, students, the table of ids."""

import numpy as np
import pytest
import torch
from testkit.text import text_checkpoint, text_table

from ml_core.distill.features import Features
from ml_core.distill.tasks import text, text_models, text_transfer
from ml_core.distill.tasks.request import Request
from ml_core.errors import InputError
from ml_core.models.transformers_shim import transformers_import
from ml_core.train.distill.catalogue import cases_named


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


@pytest.fixture(scope="module")
def transfer(tmp_path_factory):
    root = tmp_path_factory.mktemp("transfer")
    text_table(root / "mrpc", rows=40, pair=True)
    for name in ("qqp", "stsb"):
        text_table(root / name, rows=61, pair=True)
    text_table(root / "cola", rows=40)
    return root


def test_a_transfer_set_has_rows_without_a_label_that_no_split_holds_otherwise(transfer, places):
    task = text.text_task(transfer, name="mrpc+pairs", tokenizer=places[1])
    own = text.text_task(transfer, name="mrpc", tokenizer=places[1])
    labelled = task.train.weight == 1
    assert int(labelled.sum()) == len(own.train) == 36
    assert not bool(task.train.weight[~labelled].any())
    assert len(task.train) > 36

    def texts(split, rows):
        kept = zip(split.inputs["ids"][rows].tolist(), split.inputs["length"][rows].tolist(), strict=True)
        return {tuple(ids[:length]) for ids, length in kept}

    free = texts(task.train, ~labelled)
    assert len(free) == int((~labelled).sum())  # each once
    for split in (own.train, task.dev, task.test):
        assert not free & texts(split, slice(None))
    assert torch.equal(task.test.labels, own.test.labels)
    assert torch.equal(task.dev.inputs["ids"], own.dev.inputs["ids"])


def test_labels_of_a_transfer_set_are_never_read_and_its_teacher_never_sees_it(transfer, places):
    task = text.text_task(transfer, name="cola+corrupted", tokenizer=places[1])
    batch = task.train.batch(torch.arange(len(task.train)))

    def answers(rows):
        logits = torch.randn(len(task.train), 2, generator=torch.Generator().manual_seed(0))[rows]
        return Features(layers=(logits[:, None],), pooled=logits, logits=logits)

    shown = answers(slice(None))
    lied = batch | {"label": torch.where(batch["weight"] > 0, batch["label"], 1 - batch["label"])}
    assert bool((lied["label"] != batch["label"]).any())
    assert torch.equal(task.loss(shown, batch), task.loss(shown, lied))
    nothing = {name: value[batch["weight"] == 0] for name, value in batch.items()}
    assert float(task.loss(answers(batch["weight"] == 0), nothing)) == 0.0
    kept = task.labelled()
    own = text.text_task(transfer, name="cola", tokenizer=places[1])
    width = own.train.inputs["ids"].shape[1]
    assert torch.equal(kept.train.inputs["ids"][:, :width], own.train.inputs["ids"])
    assert torch.equal(kept.train.labels, own.train.labels)
    assert own.labelled() is own


def test_a_corrupted_text_differs_from_its_own_by_one_change():
    rows = [(f"a{n} b{n} c{n} d{n}",) for n in range(200)]
    made = text_transfer.corrupted([*rows, ("too short",)], times=3, rng=np.random.default_rng(0))
    assert len(made) == 600
    kinds = set()
    for index, (changed,) in enumerate(made):
        before, after = rows[index // 3][0].split(), changed.split()
        assert abs(len(after) - len(before)) <= 1
        if len(after) != len(before):
            kinds.add(len(after) - len(before))
            assert set(after) <= set(before)
        else:
            moved = [a != b for a, b in zip(before, after, strict=True)]
            kinds.add("swapped" if sum(moved) == 2 else "replaced")
            assert sum(moved) <= 2
    assert kinds == {-1, 1, "swapped", "replaced"}
    assert made == text_transfer.corrupted([*rows, ("too short",)], times=3, rng=np.random.default_rng(0))


def test_a_whole_name_means_its_case_alone(transfer, places):
    request = Request(text_data=transfer, teacher=places[1], tasks=(), systems=(), work=transfer / "work")
    names = lambda word: [case.name for case in cases_named([word], request=request)]  # noqa: E731
    assert names("bert6x384/mrpc") == ["mpnet>bert6x384/mrpc"]
    assert names("bert6x384/mrpc+pairs") == ["mpnet>bert6x384/mrpc+pairs"]
    assert len(names("/mrpc")) == 2 * len(text_models.STUDENTS)
