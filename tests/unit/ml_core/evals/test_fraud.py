"""`python -m ml_core eval fraud`: its one JSON object, its score file, keys of any type."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ml_core.__main__ import main
from ml_core.data.bank import simulate, write_parquet

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("eval")
    bank = simulate(seed=41, cards=60, terminals=40, days=50)
    late = bank["TX_TIME_DAYS"] >= 43
    write_parquet({name: column[~late] for name, column in bank.items()}, folder / "history.parquet")
    test = {name: column[late] for name, column in bank.items()}
    test["CUSTOMER_ID"] = np.array([str(card) for card in test["CUSTOMER_ID"]])
    write_parquet(test, folder / "test.parquet")
    return folder / "history.parquet", folder / "test.parquet"


@pytest.mark.slow
def test_the_command_prints_one_json_object_and_writes_every_score(files, tmp_path: Path) -> None:
    history, test = files
    command = [sys.executable, "-m", "ml_core", "eval", "fraud", "--history", str(history), "--test", str(test)]
    done = subprocess.run(
        [*command, "--json", "--scores", str(tmp_path / "scores.parquet")],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"n", "frauds", "auc", "ap", "cp100", "model_digest", "seconds"}
    scores = pq.read_table(tmp_path / "scores.parquet").to_pydict()
    assert list(scores) == ["TRANSACTION_ID", "score"]
    assert len(scores["score"]) == result["n"] == pq.read_table(test).num_rows
    assert scores["TRANSACTION_ID"] == pq.read_table(test).column("TRANSACTION_ID").to_pylist()
    assert result["auc"] > 0.7


def test_a_missing_file_is_an_error_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "fraud", "--history", "nowhere.parquet", "--test", "no.parquet", "--json"]) == 2
    assert "nowhere.parquet" in json.loads(capsys.readouterr().out.splitlines()[-1])["message"]
