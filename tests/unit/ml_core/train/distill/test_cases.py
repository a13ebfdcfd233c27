"""Every family runs from its files to a row: text with a cached teacher, films, fraud."""

import csv

import numpy as np
import pytest
from PIL import Image

from ml_core.distill.tasks import films, text
from ml_core.distill.tasks.request import Request, Tuned
from ml_core.errors import InputError
from ml_core.train.distill import fraud
from ml_core.train.distill.catalogue import cases_named, measure, tune
from ml_core.train.distill.protocol import measure as plan_measure


def quiet(text):
    pass


@pytest.fixture
def folder_of_films(tmp_path):
    """24 small pictures, a third of them in split val, with findings by turns."""
    root = tmp_path / "films"
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (root / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["image", "labels", "patient", "split"])
        writer.writeheader()
        for row in range(48):
            Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(root / "images" / f"{row}.png")
            labels = "Effusion" if row % 2 else "No Finding"
            split = "val" if row % 3 == 0 else "train"
            writer.writerow({"image": f"{row}.png", "labels": labels, "patient": row, "split": split})
    return root


def test_films_train_and_are_measured_on_the_split_val(folder_of_films, plan):
    case = films.cases(folder_of_films, quick=True)[0]
    task = case.load()
    assert len(task.test) == 16
    assert {int(value) for value in task.train.labels.unique()} == {-1, 0, 1}
    result = plan_measure(plan(cases=[case], systems=("kd", "dfad")), say=quiet)[0]
    assert result.teacher_params > 16 * result.params
    assert result.outputs[("dfad", 0)].shape == (16, 14)


def test_dev_films_are_cut_from_the_others_by_patient(folder_of_films):
    with (folder_of_films / "labels.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    with (folder_of_films / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"patient": f"p{index // 2}"} for index, row in enumerate(rows))
    task = films.films_task(folder_of_films, size=64)
    assert len(task.train) + len(task.dev) == 32
    held = {f"p{index}" for index in range(24) if films._share_of(f"p{index}") < 0.15}
    wanted = [row for index, row in enumerate(rows) if f"p{index // 2}" in held and row["split"] != "val"]
    assert len(task.dev) == len(wanted) > 0


def test_fraud_banks_of_the_splits_are_others_and_trees_teach(plan):
    case = fraud.cases(quick=True)[0]
    task = case.load()
    amounts = [set(split.inputs["features"][:, 0].tolist()) for split in (task.train, task.dev, task.test)]
    assert amounts[0] != amounts[1] != amounts[2]
    result = plan_measure(plan(cases=[case], systems=("kd", "fitnets", "dfad_as_published", "dfad")), say=quiet)[0]
    assert set(result.cells[0].values) == {"average precision", "auc"}
    assert result.outputs[("dfad", 0)].shape == (len(task.test), 1)


def test_a_word_names_a_family_a_case_or_a_part_and_else_is_an_error(folder_of_films):
    request = Request(tasks=(), films=folder_of_films)
    assert {case.family for case in cases_named(["digits"], request=request)} == {"digits"}
    assert [case.name for case in cases_named(["cnn>"], request=request)] == ["cnn>vit32x3/digits"]
    assert [case.family for case in cases_named(["films"], request=request)] == ["films"]
    with pytest.raises(InputError, match="--text-data"):
        cases_named(["text"], request=request)


def test_tuning_on_a_word_that_names_two_cases_is_an_error(tmp_path):
    with pytest.raises(InputError, match="4 cases"):
        tune(Request(tasks=("digits",), work=tmp_path, quick=True), case="digits")


def test_text_runs_from_folders_and_its_teacher_may_come_from_the_disk(tmp_path, monkeypatch):
    from testkit.text import text_checkpoint, text_table

    text_table(tmp_path / "data" / "sst2", rows=30)
    teacher = text_checkpoint(tmp_path / "mpnet-tiny", kind="mpnet")
    student = text_checkpoint(tmp_path / "mini", kind="bert")
    request = Request(
        tasks=("bert6x384/sst2", "layers4x768/sst2"), systems=("minilm", "dfad"), seeds=1, quick=True,
        work=tmp_path / "work", device="cpu", text_data=tmp_path / "data", teacher=teacher, student=student,
    )  # fmt: skip
    live = measure(request, tuned=Tuned())
    assert [result.case for result in live] == ["mpnet>bert6x384/sst2", "mpnet>layers4x768/sst2"]
    assert live[0].student_start == "pretrained (mini)"
    assert {cell.system for cell in live[0].cells} == {"minilm", "dfad"}
    cached = measure(
        Request(**{**{name: getattr(request, name) for name in request.__dataclass_fields__},
                   "cached": True, "work": tmp_path / "other"}), tuned=Tuned())  # fmt: skip
    assert any((tmp_path / "other" / "teachers").glob("*/cache/manifest.json"))
    for a, b in zip(live, cached, strict=True):
        assert np.allclose(a.outputs[("dfad", 0)], b.outputs[("dfad", 0)], atol=0.05)
    assert text.FAMILY == "text"
