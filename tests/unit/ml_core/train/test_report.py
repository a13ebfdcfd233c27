"""A report run on simulated films from its spec to an artifact that drafts, beside the champion."""

from dataclasses import replace
from pathlib import Path

import pytest

from ml_core import artifacts
from ml_core.contracts import DraftRequest, ImageInput, ModelKey, ModelKind, StudyInput
from ml_core.data.phantom_dicom import make_studies
from ml_core.errors import InputError
from ml_core.evals.report import SHIPPED
from ml_core.events import EVENTS, EventLog, read
from ml_core.recipes import report_dfad_small
from ml_core.serving.report import ReportDrafter
from ml_core.train.report import run


@pytest.mark.slow
def test_a_small_run_leaves_a_model_that_drafts(tmp_path: Path) -> None:
    spec = report_dfad_small()
    spec = replace(spec, params=spec.params | {"phantoms": 16, "others": 8, "epochs": 1}, parent=str(SHIPPED))
    with EventLog(tmp_path) as log:
        outcome = run(spec, tmp_path, log)
    events, _ = read(tmp_path / EVENTS)
    assert [event["kind"] for event in events].count("step") >= 2
    assert set(outcome.candidate) == set(outcome.champion or {})
    assert 0 <= outcome.candidate["f1_micro"] <= 1
    manifest = artifacts.read(tmp_path / "artifact")
    assert (manifest.digest, manifest.kind) == (outcome.digest, ModelKind.REPORT)
    film = make_studies(3, patients=1, size=128, priors=0.0)[0].files[0][1]
    drafter = ReportDrafter(tmp_path / "artifact", device="cpu")
    study = StudyInput(key="s", images=(ImageInput(key="0", encoded=film),))
    key = ModelKey(kind=ModelKind.REPORT, digest=drafter.digest, folder=str(tmp_path / "artifact"))
    (drafted,) = drafter.draft(DraftRequest(model=key, studies=(study,))).drafts
    assert drafted.study_key == "s"
    assert drafted.declined or len(drafted.findings) == 14


def test_a_setting_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    spec = report_dfad_small()
    with EventLog(tmp_path) as log, pytest.raises(InputError, match="speed"):
        run(replace(spec, params=spec.params | {"speed": 1}), tmp_path, log)
