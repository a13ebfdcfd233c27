"""Serving further inputs: a model that declares none answers as before, one that declares some explains them too."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ml_core import artifacts
from ml_core.contracts import ModelKey, ModelKind, ScoreRequest, Transaction
from ml_core.data.bank import simulate
from ml_core.data.extra_inputs import ExtraInputs
from ml_core.data.handbook import table_from_columns
from ml_core.data.mapping import mapping_from
from ml_core.errors import ArtifactError, InputError
from ml_core.evals.fraud import SHIPPED, score_table
from ml_core.models.fraud_student import FraudStudent
from ml_core.quant import Quantizer, QuantLinear
from ml_core.serving.fraud import FraudScorer
from ml_core.serving.fraud_reasons import DETAILS, GROUPS
from ml_core.train.fraud import write_artifact
from ml_core.train.fraud_presets import fraud_dfad_schema
from ml_core.train.fraud_schema import with_extras

# of the commit before further inputs existed, on this bank: the three highest, and the sum with its weights in fp32:
# a level that the last bits of another CPU turn over moves the served sum by a thousandth
DIGEST = "1ad8eb76336e1fd56df090d6447257567b738ab0619cb337fc267cc7f1107bbe"
HIGHEST, SUM_IN_FLOAT = {2708: 0.999651, 1084: 0.99785, 2701: 0.996922}, 117.833158
EXTRAS = ExtraInputs(
    mapping=mapping_from(
        {
            "name": "ours", "id": "i", "card": "c", "terminal": "t", "time": {"column": "at"},
            "amount": {"column": "a", "unit": "cents"}, "fraud": {"column": "f"},
            "inputs": [
                {"column": "scheme", "kind": "category"},
                {"column": "lat", "kind": "number"},
                {"column": "region", "kind": "category"},
            ],
        }
    ),
    vocabulary={"scheme": ("amex", "visa"), "region": ("north",)},
)  # fmt: skip


def test_the_shipped_student_scores_as_it_did_before_there_were_further_inputs() -> None:
    scorer = FraudScorer(SHIPPED)
    table = table_from_columns(simulate(seed=61, cards=40, terminals=30, days=40))
    scores = score_table(scorer, table, first=0)
    assert (scorer.digest, scorer.extras, len(scores)) == (DIGEST, None, 2_836)
    assert {row: scores[row] for row in HIGHEST} == pytest.approx(HIGHEST, abs=2e-6)
    in_float(scorer.model)
    assert score_table(scorer, table, first=0).sum() == pytest.approx(SUM_IN_FLOAT, abs=1e-4)


def in_float(model: torch.nn.Module) -> None:
    """Its integer layers as fp32 ones with the same weights."""
    for name, child in model.named_children():
        if isinstance(child, QuantLinear):
            layer = torch.nn.Linear(child.in_features, child.out_features)
            layer.weight.data, layer.bias.data = child.dequantized(), child.bias.detach()
            setattr(model, name, layer)
        else:
            in_float(child)


def test_the_shipped_student_ignores_what_it_does_not_read() -> None:
    scorer = FraudScorer(SHIPPED)
    bare = transaction()
    told = replace(bare, extras={"scheme": "visa", "anything": None})
    answers = [scorer.score(request(scorer, one, explain_from=0.0)).scores for one in (bare, told)]
    assert answers[0] == answers[1]
    assert {reason.feature for reason in answers[0][0].reasons} == set(GROUPS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An untrained student of a schema; its tables are filled, so that every code matters."""
    training = with_extras(fraud_dfad_schema(), EXTRAS)
    torch.manual_seed(0)
    student = FraudStudent(training.student)
    for table in student.categories:
        torch.nn.init.normal_(table.weight[1:])
    model, report = Quantizer(student).convert()
    assert {"categories.0", "categories.1"} <= {line.name for line in report if line.kind == "Embedding"}
    path = tmp_path_factory.mktemp("extras") / "artifact"
    write_artifact(path, training=training, model=model, metrics={}, data="", teacher="", extras=EXTRAS)
    return path


@pytest.fixture(scope="module")
def scorer(folder: Path) -> FraudScorer:
    return FraudScorer(folder)


def test_an_artifact_without_further_inputs_has_no_word_of_them(tmp_path: Path) -> None:
    training = fraud_dfad_schema()
    model, _ = Quantizer(FraudStudent(training.student)).convert()
    write_artifact(tmp_path / "a", training=training, model=model, metrics={}, data="", teacher="")
    manifest = artifacts.read(tmp_path / "a")
    assert "extras" not in manifest.config
    assert set(artifacts.load_tensors(tmp_path / "a")) == set(artifacts.load_tensors(SHIPPED))


def test_every_declared_input_moves_the_score_and_what_is_unknown_is_one(scorer: FraudScorer) -> None:
    def probability(**extras: str | float | None) -> float:
        one = transaction(extras={"scheme": "visa", "lat": 50.0, "region": "north"} | extras)
        return scorer.score(request(scorer, one)).scores[0].probability

    usual = probability()
    assert len({usual, probability(scheme="amex"), probability(lat=-50.0), probability(region=None)}) == 4
    assert probability(region="south") == probability(region=None) == probability(region="never seen")


def test_an_undeclared_or_missing_input_is_refused_by_name(scorer: FraudScorer) -> None:
    with pytest.raises(InputError, match="extras: unknown colour; known: lat, region, scheme"):
        scorer.score(request(scorer, transaction(extras={"lat": 1.0, "colour": "red"})))
    with pytest.raises(InputError, match="extras.lat: column 'lat' is null"):
        scorer.score(request(scorer, transaction(extras={"scheme": "visa"})))


def test_the_reasons_have_a_group_of_their_own_and_still_add_up(scorer: FraudScorer) -> None:
    one = transaction(extras={"scheme": "amex", "lat": 50.0, "region": None})
    score = scorer.score(request(scorer, one, explain_from=0.0)).scores[0]
    assert [reason.feature for reason in score.reasons].count(DETAILS) == 1
    assert {reason.feature for reason in score.reasons} == {*GROUPS, DETAILS}
    assert score.base_points + sum(r.points for r in score.reasons) == pytest.approx(100 * score.probability, abs=2e-3)
    details = next(reason for reason in score.reasons if reason.feature == DETAILS)
    assert details.text == "Further details: scheme amex, lat 50.0."
    assert details.points != 0.0


def test_rows_with_further_inputs_score_alike_alone_and_together(scorer: FraudScorer) -> None:
    rng = np.random.default_rng(0)
    some = tuple(
        transaction(id=str(k), at=1_000_000 + 600 * k, card=f"c{k}", terminal=f"t{k}", extras=extras)
        for k, extras in enumerate(
            {"scheme": str(s), "lat": float(lat)}
            for s, lat in zip(rng.choice(["visa", "amex", "x"], 40), rng.normal(size=40), strict=True)
        )
    )
    together = scorer.score(request(scorer, *some)).scores
    assert [scorer.score(request(scorer, one)).scores[0] for one in some] == list(together)


def test_a_manifest_whose_student_reads_other_inputs_is_refused(folder: Path, tmp_path: Path) -> None:
    manifest = artifacts.read(folder)
    artifacts.write(
        tmp_path / "a", kind=ModelKind.FRAUD, name="x", recipe="x", tensors=artifacts.load_tensors(folder),
        config={name: value for name, value in manifest.config.items() if name != "extras"}, metrics={},
        data_digest="", teacher_digest="", parameters=0, licence="x", card="x",
    )  # fmt: skip
    with pytest.raises(ArtifactError, match="its student reads other inputs than the artifact declares"):
        FraudScorer(tmp_path / "a")
    assert json.loads((folder / "manifest.json").read_text())["config"]["extras"]["mapping"]["name"] == "ours"


def transaction(**changed) -> Transaction:
    usual = {"id": "a", "at": 1_772_366_400, "card": "c", "terminal": "t", "amount_cents": 4_200}
    return Transaction(**usual | changed)


def request(scorer: FraudScorer, *transactions: Transaction, explain_from: float = 1.1) -> ScoreRequest:
    key = ModelKey(kind=ModelKind.FRAUD, digest=scorer.digest, folder="-")
    return ScoreRequest(model=key, transactions=transactions, explain_from=explain_from)
