"""The benchmark of long documents: what stands beyond the cut is lost; both kinds of task have their own measure."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.bench import long_documents
from tests.bench.long_documents import LENGTHS, Encoder, Settings, _batches

SMALL = Settings(d=16, h=2, layers=1, segment=64, vocabulary=60, epochs=8, budget=8_192, rate=3e-2, dropped=0.0)


@pytest.fixture
def folder(tmp_path):
    """Reviews whose only telling word is the 601st, contracts with two questions."""
    for split in ("train", "dev"):
        texts = ["word " * 600 + ("good" if at % 2 else "bad") + " word" * (at % 7) for at in range(40)]
        labels = [at % 2 for at in range(40)]
        tables = {
            "movie_reviews": {"text": texts, "label": labels},
            "cuad": {"title": texts, "text": texts, "one": [bool(x) for x in labels], "none": [False] * 40},
        }
        for name, columns in tables.items():
            (tmp_path / name).mkdir(exist_ok=True)
            pq.write_table(pa.table(columns), tmp_path / name / f"{split}.parquet")
    return tmp_path


def run(folder, capsys, monkeypatch, *words):
    options = ["--data", str(folder), "--device", "cpu", "--seeds", "1", *words]
    monkeypatch.setattr("sys.argv", ["long-documents", *options])
    monkeypatch.setattr(long_documents, "Settings", lambda: SMALL)
    assert long_documents.main() == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    return {(row["case"], row["system"]): row["value"] for row in rows}


def test_what_stands_beyond_the_cut_is_lost_and_what_one_word_says_is_learnt_before(folder, capsys, monkeypatch):
    found = run(folder, capsys, monkeypatch, "--tasks", "movie_reviews", "--lengths", "512", "whole")
    assert found["long/movie_reviews/512", "words_counted"] == 0.5
    assert found["long/movie_reviews/512", "assay"] == 0.5
    assert found["long/movie_reviews/whole", "words_counted"] == 1.0
    assert found["long/movie_reviews/whole", "chance"] == 0.5
    assert found["long/movie_reviews/whole", "assay"] == 1.0


def test_contracts_are_judged_by_the_questions_that_have_an_answer(folder, capsys, monkeypatch):
    found = run(folder, capsys, monkeypatch, "--tasks", "cuad", "--lengths", "whole")
    assert found["long/cuad/whole", "words_counted"] == 1.0
    assert found["long/cuad/whole", "chance"] == 0.5  # of the question that is answered with yes; the other has no rank


def test_padding_changes_nothing():
    torch.manual_seed(0)
    model = Encoder(SMALL, answers=3).eval()
    ids = torch.randint(2, 60, (1, 100))
    padded = torch.cat([ids, torch.zeros(1, 90, dtype=torch.long)], dim=1)
    assert torch.allclose(model(ids), model(padded), atol=1e-5)


def test_a_batch_fits_the_budget_and_no_text_is_left_out():
    lengths = [5, 900, 3, 40, 5000, 41, 0]
    batches = _batches([[1] * length for length in lengths], budget=1000)
    assert sorted(at for batch in batches for at in batch) == list(range(7))
    for batch in batches:
        longest = max(lengths[at] for at in batch)
        assert len(batch) == 1 or len(batch) * longest <= 1000


def test_whole_means_whole():
    assert LENGTHS["whole"] > 100_000
