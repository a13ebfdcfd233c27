"""The general stage: which texts it reads, what it leaves behind, and that the benchmark starts from there."""

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from testkit.text import text_checkpoint

from ml_core.distill.tasks import text_models
from ml_core.distill.tasks.text_general import general_task
from ml_core.errors import InputError
from ml_core.recipes import distillation
from ml_core.train.distill.named import named_run

PARAMS = {"epochs": 2, "batch": 4, "device": "cpu"}


def table(folder, *, part, **columns):
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), folder / f"{part}.parquet")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("general")
    data = root / "data"
    table(
        data / "sst2", part="train", text=["good film", "bad film", "good film", "the film is held"], label=[1, 0, 1, 0]
    )
    table(data / "sst2", part="dev", text=["the film is held"], label=[0])
    table(data / "mrpc", part="train", text_a=["a film", "bad"], text_b=["the film", "good"], label=[1, 0])
    table(data / "movie_reviews", part="train", text=["not very good"], label=[0])
    return data, text_checkpoint(root / "mpnet-tiny", kind="mpnet")


def test_each_text_is_read_once_and_none_of_a_dev_split_or_of_what_is_left_out(places):
    data, teacher = places
    task = general_task(data, tokenizer=teacher)
    assert len(task.train) == 4  # two texts, two pairs
    batch = task.prepare(task.train.batch(torch.arange(4)))
    ends = (batch["ids"] == 2).sum(1).tolist()
    assert sorted(ends) == [1, 1, 2, 2]
    assert batch["mask"].sum(1).tolist() == batch["length"].tolist()
    assert len(general_task(data, tokenizer=teacher, most=3).train) == 3


def test_a_folder_without_text_is_refused(places, tmp_path):
    with pytest.raises(InputError, match="no text"):
        general_task(tmp_path, tokenizer=places[1])


def test_the_student_starts_from_what_the_stage_left_and_says_so(places, tmp_path):
    data, teacher = places
    inputs = {"text_data": str(data), "teacher": str(teacher)}
    recipe = distillation("text_general_5m")
    made = named_run(recipe, folder=tmp_path, seed=0, inputs=inputs, params=PARAMS)
    assert made["texts"] == 4
    starts = text_models.Starts(teacher=teacher, general=tmp_path)
    assert text_models.start("factor4x256", starts=starts) == made["says"]
    assert made["digest"][:8] in made["says"]
    assert text_models.rate("factor4x256", starts=starts) < text_models.rate(
        "factor4x256", starts=text_models.Starts(teacher=teacher)
    )
    torch.manual_seed(1)
    first = text_models.student("factor4x256", starts=starts, classes=2)
    torch.manual_seed(2)
    second = text_models.student("factor4x256", starts=starts, classes=2)
    assert all(torch.equal(a, b) for a, b in zip(first.taps.parameters(), second.taps.parameters(), strict=True))
    assert not torch.equal(first.head.weight, second.head.weight)


def test_a_start_that_is_not_there_is_an_error_and_no_random_student(places, tmp_path):
    starts = text_models.Starts(teacher=places[1], general=tmp_path)
    assert "not there yet" in text_models.start("factor4x256", starts=starts)
    with pytest.raises(InputError, match="text_general"):
        text_models.student("factor4x256", starts=starts, classes=2)


def test_other_inputs_and_params_are_refused(places, tmp_path):
    recipe = distillation("text_general_21m")
    inputs = {"text_data": str(places[0]), "teacher": str(places[1])}
    with pytest.raises(InputError, match="text_data and teacher"):
        named_run(recipe, folder=tmp_path, seed=0, inputs={"teacher": inputs["teacher"]}, params={})
    with pytest.raises(InputError, match="temperature"):
        named_run(recipe, folder=tmp_path, seed=0, inputs=inputs, params={"temperature": 2})
