"""A chain of teachers from its spec to the artifact and to what is kept for measuring."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml_core import artifacts
from ml_core.contracts import RunSpec
from ml_core.data.phantom import render
from ml_core.errors import RunError
from ml_core.events import EVENTS, EventLog, read
from ml_core.models.report_student import ReportStudentConfig
from ml_core.recipes import report_chain_int8
from ml_core.serving.report import ReportDrafter
from ml_core.train.report import run
from ml_core.train.report_chain import large_config
from ml_core.train.report_gather import ReportParams

TINY = {
    "device": "cpu", "phantoms": 12, "others": 8, "scored": 2, "teacher_steps": 2, "large_steps": 2, "student_steps": 2,
    "batch": 4, "large_batch": 4, "encoder_depth": 2, "image_size": 64, "large_encoder": "vit_tiny_patch16_224",
    "large_depth": 2, "large_decoder_layers": 1, "large_decoder_width": 64, "processes": 1, "seconds": 0.0,
}  # fmt: skip


def tiny(**inputs: str) -> RunSpec:
    spec = report_chain_int8()
    return replace(spec, params=spec.params | TINY, inputs=inputs)


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("val")
    (folder / "images").mkdir()
    Image.fromarray((render(3, size=64).pixels / 16).astype(np.uint8)).save(folder / "images" / "a.png")
    (folder / "labels.csv").write_text("image,labels,patient\na.png,Effusion,1\n")
    return folder


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, val: Path) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    with EventLog(folder) as log:
        outcome = run(tiny(val=str(val)), folder, log)
    assert artifacts.read(folder / "artifact").digest == outcome.digest
    return folder


@pytest.mark.slow
def test_a_chain_leaves_students_that_draft_and_what_every_model_said(ran: Path) -> None:
    assert len(ReportDrafter(ran / "artifact", device="cpu").digest) == 64
    assert {path.name for path in (ran / "students").iterdir()} == {"chain", "cnn", "plain"}
    scores = np.load(ran / "scores.npz")
    models = {"cnn", "large", "mean", "student-chain", "student-cnn", "student-plain"}
    assert {tuple(name.split("/")[:2]) for name in scores.files} == {
        (films, model) for films in ("simulated", "simulated_check", "val") for model in models
    }
    assert scores["val/student-chain/states"].shape == (1, 14, 4)
    mean = (scores["simulated/cnn/presence"] + scores["simulated/large/presence"]) / 2
    assert np.allclose(scores["simulated/mean/presence"], mean, atol=1e-4)
    drafts = [json.loads(line) for line in (ran / "drafts.jsonl").read_text().splitlines()]
    assert [(line["films"], line["key"]) for line in drafts] == [
        ("simulated", "970000000"), ("simulated", "970000001"), ("val", "a.png"),
    ]  # fmt: skip
    rules = json.loads((ran / "checkpoints" / "rules.json").read_text())
    assert set(rules) == {"large", "chain", "cnn", "plain", "chosen"}
    stages = [event["name"] for event in read(ran / EVENTS)[0] if event["kind"] == "stage"]
    assert stages == ["films", "teacher", "large teacher", "students", "int8"]


@pytest.mark.slow
def test_films_that_are_only_scored_do_not_change_the_student(ran: Path, tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        run(tiny(), tmp_path, log)
    with_val, without = artifacts.read(ran / "artifact"), artifacts.read(tmp_path / "artifact")
    assert with_val.data_digest == without.data_digest
    assert with_val.files["model.safetensors"] == without.files["model.safetensors"]


def test_the_large_model_is_the_students_architecture_made_large() -> None:
    student = ReportStudentConfig(vocabulary=900)
    large = large_config(student, ReportParams())
    assert (large.encoder, large.encoder_depth) == ("vit_base_patch16_224", 12)
    assert (large.decoder_layers, large.decoder_width, large.decoder_heads, large.decoder_ffn) == (6, 768, 12, 3072)
    assert (large.image_size, large.vocabulary, large.stem) == (student.image_size, 900, student.stem)


def test_a_pupil_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log, pytest.raises(RunError, match="oracle"):
        run(replace(tiny(), params=tiny().params | {"pupils": "chain,oracle"}), tmp_path, log)


@pytest.mark.slow
def test_students_go_on_from_an_artifact_of_their_shape_and_from_no_other(ran: Path, tmp_path: Path) -> None:
    params = tiny().params | {"pupils": "plain", "rate": 0.0}
    start = str(ran / "students" / "plain")
    with EventLog(tmp_path) as log:
        run(replace(tiny(start=start), params=params), tmp_path, log)
        with pytest.raises(RunError, match="another shape"):
            run(replace(tiny(start=start), params=params | {"encoder_depth": 1}), tmp_path, log)
    first, last = (artifacts.load_tensors(folder) for folder in (Path(start), tmp_path / "artifact"))
    name = "encoder.blocks.0.attn.qkv.weight"  # at a rate of 0 nothing but the running statistics moves
    assert (first[name].int() - last[name].int()).abs().max() <= 1
    assert [path.name for path in (tmp_path / "students").iterdir()] == ["plain"]


def test_a_teacher_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log, pytest.raises(RunError, match="oracle"):
        run(replace(tiny(), params=TINY | {"teacher": "oracle"}), tmp_path, log)
