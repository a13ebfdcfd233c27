"""Measuring drafts: what the text asserts counts, a declined image asserts nothing, intervals are over patients."""

import json

import numpy as np
import pytest
from PIL import Image

from ml_core.data.chest import LabelledFilm, other_render
from ml_core.data.findings import FINDINGS, INDEX
from ml_core.data.phantom import render
from ml_core.errors import InputError
from ml_core.evals.report import SHIPPED, evaluate, f1_interval, f1_micro, score
from ml_core.serving.report import ReportDrafter

KEYS = {"n", "declined", "declined_share", "seconds", "model_digest", "findings", "micro", "macro", "constant"}


@pytest.fixture(scope="module")
def drafter():
    return ReportDrafter(SHIPPED, device="cpu")


@pytest.fixture
def folder(tmp_path):
    """Four simulated films and one picture that is none, with labels for the films and for a file that is not there."""
    lines = ["image,labels,patient"]
    for seed in range(4):
        film = render(seed, size=128)
        Image.fromarray((film.pixels // 16).astype(np.uint8)).save(tmp_path / f"{seed}.png")
        lines.append(f"{seed}.png,No Finding,{seed}")
    Image.fromarray((other_render(3, size=128) * 255).astype(np.uint8)).save(tmp_path / "other.png")
    lines += ["other.png,Effusion,9", "absent.png,Edema,10"]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def film(*names, patient="p"):
    return LabelledFilm(path=None, image="", names=frozenset(names), patient=patient, view="PA", split="")


def vector(*names):
    row = np.zeros(len(FINDINGS), dtype=np.float32)
    row[[INDEX[name] for name in names]] = 1
    return row


def test_a_folder_is_drafted_and_measured_and_every_image_has_its_line(drafter, folder):
    out = folder / "drafts.jsonl"
    result = evaluate(drafter, images=folder, labels=folder / "labels.csv", drafts=out)
    assert set(result) >= KEYS
    assert (result["n"], result["declined"]) == (5, 1)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["image"] for line in lines] == ["0.png", "1.png", "2.png", "3.png", "other.png"]
    assert all(set(line) >= {"image", "declined", "reason", "findings", "text"} for line in lines)
    declined = lines[-1]
    assert declined["declined"]
    assert declined["reason"]
    assert declined["text"] == ""


def test_without_labels_everything_in_the_folder_is_drafted_and_nothing_is_measured(drafter, folder):
    result = evaluate(drafter, images=folder)
    assert result["n"] == 5
    assert "micro" not in result


def test_an_empty_folder_is_refused(drafter, tmp_path):
    with pytest.raises(InputError, match="images"):
        evaluate(drafter, images=tmp_path)


def test_f1_counts_what_is_there_and_what_is_said():
    truth = np.stack([vector("Edema"), vector("Edema", "Pneumonia"), vector()])
    stated = np.stack([vector("Edema"), vector("Pneumonia"), vector("Edema")])
    both = [INDEX["Edema"], INDEX["Pneumonia"]]
    assert f1_micro(truth, stated, [INDEX["Edema"]]) == pytest.approx(2 * 1 / (2 + 2))
    assert f1_micro(truth, stated, both) == pytest.approx(2 * 2 / (3 + 3))
    assert f1_micro(truth[:, :0], stated[:, :0], []) == 0


def test_the_interval_holds_the_value_and_widens_when_films_are_of_one_patient():
    rng = np.random.default_rng(0)
    truth = (rng.random((120, len(FINDINGS))) < 0.4).astype(np.float32)
    stated = np.where(rng.random(truth.shape) < 0.8, truth, 1 - truth)
    apart = f1_interval(truth, stated, columns=[0, 1], patients=np.arange(120))
    # forty copies of three films carry no more than three patients do
    few = f1_interval(
        np.tile(truth[:3], (40, 1)), np.tile(stated[:3], (40, 1)), columns=[0, 1], patients=np.tile([0, 1, 2], 40)
    )
    assert apart["low"] < apart["f1"] < apart["high"]
    assert few["high"] - few["low"] > apart["high"] - apart["low"]


def test_rare_findings_are_shown_as_not_assessed_and_the_constant_report_stands_beside():
    films = [film("No Finding", patient=str(i)) for i in range(12)] + [film("Edema", patient=f"e{i}") for i in range(3)]
    stated = np.stack([vector("No Finding")] * 15)
    result = score(films, stated)
    assert result["assessed"] == ["No Finding"]
    assert result["findings"]["Edema"] == {"positives": 3, "assessed": False}
    assert result["micro"]["f1"] == result["constant"]["micro"]["f1"] == pytest.approx(2 * 12 / (12 + 15))
    assert result["false_per_report"] == pytest.approx(3 / 15)
    assert result["missed_per_report"] == 0
