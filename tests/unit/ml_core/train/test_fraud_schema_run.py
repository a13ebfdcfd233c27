"""A second schema from its declared mapping to scores: the same features as the built-in reader, then one whole run."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score
from testkit.mapping import LATITUDE, RENAMED, SCHEME

from ml_core.__main__ import main
from ml_core.contracts import ModelKey, ModelKind, RunSpec, ScoreRequest, Transaction
from ml_core.data.bank import simulate, write_parquet
from ml_core.data.fraud_features import CHANNELS, FEATURES
from ml_core.data.handbook import events_of, read_table
from ml_core.data.mapped_table import join_mapped, read_mapped
from ml_core.data.mapping import read_mapping
from ml_core.data.replay import Replay
from ml_core.evals.fraud import score_mapped
from ml_core.events import EventLog
from ml_core.models.fraud_student import FraudStudent, FraudStudentConfig
from ml_core.serving.fraud import FraudScorer
from ml_core.train.fraud import run
from ml_core.train.fraud_fit import FitSettings
from ml_core.train.fraud_presets import PRESETS, SIZES, fraud_dfad_schema, fraud_dfad_small
from ml_core.train.fraud_schema import in_units, mapped_rows
from ml_core.train.fraud_teacher import TreeSettings

VALIDITY = """
[[inputs]]
column = "valid_to"
kind = "days_until"
format = "%m/%y"
name = "days_of_validity"
"""
INPUTS = SCHEME + LATITUDE + VALIDITY
SCORED_FROM = 58  # the first day of the test file
BAD = "scheme-3"  # the planted rule: what is paid with this scheme is fraud, and nothing else is


@pytest.fixture(scope="module")
def bank() -> dict[str, np.ndarray]:
    return simulate(seed=51, cards=60, terminals=40, days=65, start="2026-01-01")


@pytest.fixture(scope="module")
def renamed(bank) -> pa.Table:
    """The bank under other names, in whole cents, labels as booleans, columns in another order, rows shuffled."""
    n = len(bank["TX_AMOUNT"])
    order = np.random.default_rng(1).permutation(n)
    columns = {
        "is_fraud": bank["TX_FRAUD"].astype(bool),
        "paid": np.rint(bank["TX_AMOUNT"] * 100).astype(np.int64),
        "shop": bank["TERMINAL_ID"],
        "payer": bank["CUSTOMER_ID"],
        "booked": bank["TX_DATETIME"],
        "tx": bank["TRANSACTION_ID"],
    }
    return pa.table({name: values[order] for name, values in columns.items()})


@pytest.fixture(scope="module")
def folder(renamed, tmp_path_factory) -> Path:
    """history.parquet (days 0 .. 57), test.parquet and mapping.toml of a bank whose only fraud is that of a scheme."""
    folder = tmp_path_factory.mktemp("schema")
    rng = np.random.default_rng(2)
    scheme = np.array([f"scheme-{k}" for k in rng.integers(0, 6, len(renamed))])
    table = renamed.set_column(0, "is_fraud", pa.array(scheme == BAD))
    months = [f"{month:02d}/{year}" for year in (27, 28) for month in range(1, 13)]
    for name, values in (
        ("scheme", pa.array(scheme)),
        ("lat", pa.array(rng.normal(50, 3, len(table)))),
        ("valid_to", pa.array(rng.choice(months, len(table)))),
    ):
        table = table.append_column(name, values)
    day = (table["booked"].to_numpy().astype("datetime64[D]") - np.datetime64("2026-01-01")).astype(int)
    pq.write_table(table.filter(pa.array(day < SCORED_FROM)), folder / "history.parquet")
    pq.write_table(table.filter(pa.array(day >= SCORED_FROM)), folder / "test.parquet")
    (folder / "mapping.toml").write_text(RENAMED + INPUTS)
    return folder


@pytest.fixture(scope="module")
def learnt(folder) -> Path:
    """The artifact of the recipe's own stages in small steps: its 512 rows a step are too many for so small a bank."""
    quick = replace(
        PRESETS["fraud_dfad_schema"](),
        student=SIZES["small"],
        trees=TreeSettings(trees=60, leaves=7, min_leaf=20),
        student_fit=FitSettings(epochs=8, batch=64, rate=1e-2),
        quantize_rows=1_000,
    )
    spec = RunSpec(
        kind=ModelKind.FRAUD,
        recipe="quick",
        inputs={"transactions": "../history.parquet", "mapping": "../mapping.toml"},
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, EventLog(folder / "learnt") as log:
        patch.setitem(PRESETS, "quick", lambda: quick)
        run(spec, folder / "learnt", log)
    torch.set_num_threads(before)
    return folder / "learnt" / "artifact"


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_renamed_table_gives_bit_identical_inputs(bank, renamed, tmp_path: Path, kind: str) -> None:
    write_parquet(bank, tmp_path / "handbook.parquet")
    (tmp_path / "mapping.toml").write_text(RENAMED)
    path = tmp_path / f"renamed.{kind}"
    (pq.write_table if kind == "parquet" else pyarrow.csv.write_csv)(renamed, path)
    ours, theirs = read_table(tmp_path / "handbook.parquet"), read_mapped(path, read_mapping(tmp_path / "mapping.toml"))
    for name in ("id", "at", "card", "terminal", "cents", "fraud"):
        mine, other = getattr(ours, name), getattr(theirs.table, name)
        assert (mine == other).all() and mine.dtype == other.dtype, name  # noqa: PT018
    first, second = Replay().feed(events_of(ours)), Replay().feed(events_of(theirs.table))
    for name in ("features", "card", "terminal"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes(), name


@pytest.mark.slow
def test_the_command_trains_an_artifact_that_alone_scores_what_follows(folder: Path, capsys) -> None:
    command = ["distill", "--recipe", "fraud_dfad_schema", "--out", str(folder / "run"), "epochs=1", "student=small"]
    inputs = ["--input", f"transactions={folder / 'history.parquet'}", "--input", f"mapping={folder / 'mapping.toml'}"]
    assert main([*command, *inputs, "--json"]) == 0
    digest = json.loads(capsys.readouterr().out.splitlines()[-1])["digest"]
    files = ["--history", str(folder / "history.parquet"), "--test", str(folder / "test.parquet")]
    assert main(["eval", "fraud", *files, "--model", str(folder / "run" / "artifact"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["model_digest"] == digest
    assert result["n"] == pq.read_table(folder / "test.parquet").num_rows
    (folder / "other.toml").write_text(RENAMED)
    model = ["--model", str(folder / "run" / "artifact"), "--mapping", str(folder / "other.toml")]
    assert main(["eval", "fraud", *files, *model, "--json"]) == 2
    assert "our_bank" in json.loads(capsys.readouterr().out.splitlines()[-1])["message"]


@pytest.mark.slow
def test_an_input_that_no_code_knows_decides(folder: Path, learnt: Path) -> None:
    scorer = FraudScorer(learnt)
    mapping = read_mapping(folder / "mapping.toml")
    history, test = (read_mapped(folder / f"{name}.parquet", mapping) for name in ("history", "test"))
    score = score_mapped(scorer, join_mapped(history, test), first=len(history))
    assert roc_auc_score(test.table.fraud, score) > 0.99, "the scheme tells all; without it nothing can be told"


@pytest.mark.slow
def test_single_transactions_get_the_scores_of_the_table(folder: Path, learnt: Path) -> None:
    scorer = FraudScorer(learnt)
    mapped = read_mapped(folder / "history.parquet", read_mapping(folder / "mapping.toml"))
    by_id = {row["tx"]: row for row in pq.read_table(folder / "history.parquet").to_pylist()}
    some = tuple(_transaction(mapped.table, i, by_id[int(mapped.table.id[i])]) for i in range(250))
    scores = scorer.score(_request(scorer, some, explain_from=0.5)).scores
    assert [s.probability for s in scores] == pytest.approx(score_mapped(scorer, mapped, first=0)[:250], abs=1e-5)
    caught = [s for s in scores if s.reasons]
    assert {by_id[int(s.transaction_id)]["scheme"] for s in caught} == {BAD}
    for score in caught:
        points = score.base_points + sum(reason.points for reason in score.reasons)
        assert points == pytest.approx(100 * score.probability, abs=2e-3)


@pytest.mark.slow
def test_the_scheme_alone_moves_the_score_and_a_new_one_is_no_error(learnt: Path) -> None:
    scorer = FraudScorer(learnt)

    def probability(scheme: str | None) -> float:
        at = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp())
        extras = {"scheme": scheme, "lat": 50.0, "valid_to": "01/28"}
        one = Transaction(id="a", at=at, card="c", terminal="t", amount_cents=2_000, extras=extras)
        return scorer.score(_request(scorer, (one,), explain_from=1.1)).scores[0].probability

    assert probability(BAD) > 10 * probability("scheme-4")
    assert probability("a scheme of next year") < probability(BAD)
    assert probability(None) < probability(BAD)


@pytest.mark.parametrize(("factor", "unit"), [(1, 1.0), (10, 10.0), (1_000, 1_000.0)])
def test_amounts_of_another_scale_get_steps_of_their_own(renamed, tmp_path: Path, factor: int, unit: float) -> None:
    """The bank's amounts end near 400: in another currency they would be 10 or 1,000 times as large."""
    place = renamed.column_names.index("paid")
    paid = pa.array(renamed["paid"].to_numpy() * factor)
    pq.write_table(renamed.set_column(place, "paid", paid), tmp_path / "t.parquet")
    (tmp_path / "mapping.toml").write_text(RENAMED)
    rows = mapped_rows(tmp_path / "t.parquet", mapping=tmp_path / "mapping.toml", limit=10**6, seed=0)
    training = in_units(fraud_dfad_schema(), rows)
    assert (training.student.amount_unit, training.transformer.amount_unit) == (unit, unit)
    assert in_units(fraud_dfad_small(), rows) == fraud_dfad_small(), "the champion's steps are kept"


def test_an_amount_in_a_larger_unit_reads_like_one_in_a_smaller() -> None:
    torch.manual_seed(0)
    config = FraudStudentConfig(features=len(FEATURES), channels=len(CHANNELS), d=16, ffn=16, wide=16)
    first, second = FraudStudent(config).eval(), FraudStudent(replace(config, amount_unit=1_000.0)).eval()
    torch.nn.init.normal_(first.amount_bin.weight)
    with torch.no_grad():
        first.wide_in.weight[:, 0] = 0.0  # what it reads of the amount beside steps and index has no unit
    second.load_state_dict(first.state_dict())
    features = torch.rand(50, len(FEATURES)) * 900
    card, terminal = torch.rand(50, 16, len(CHANNELS)), torch.rand(50, 24, len(CHANNELS))
    expected = first(features, card, terminal)
    assert torch.allclose(
        second(features * torch.tensor([1_000.0] + [1.0] * (len(FEATURES) - 1)), card, terminal), expected
    )
    assert not torch.allclose(second(features, card, terminal), expected)


def _transaction(table, i: int, row: dict) -> Transaction:
    return Transaction(
        id=str(table.id[i]),
        at=int(table.at[i]),
        card=str(table.card[i]),
        terminal=str(table.terminal[i]),
        amount_cents=int(table.cents[i]),
        label=bool(table.fraud[i]),
        label_known_at=int(table.at[i]) + 7 * 86_400,
        extras={name: row[name] for name in ("scheme", "lat", "valid_to")},
    )


def _request(scorer: FraudScorer, transactions: tuple[Transaction, ...], *, explain_from: float) -> ScoreRequest:
    key = ModelKey(kind=ModelKind.FRAUD, digest=scorer.digest, folder="-")
    return ScoreRequest(model=key, transactions=transactions, explain_from=explain_from)
