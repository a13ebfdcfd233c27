"""The page on distillation: its tables are what the result file says, its pictures take whatever is there."""

import json

import numpy as np
import pytest
from PIL import Image
from testkit.distill_results import cases_read

from ml_core.distill.tasks.metrics import accuracy
from ml_core.distill.tasks.results import CaseResult, Cell
from ml_core.evals.distill_rows import rows_of
from tests.bench.distill_plots import draw
from tests.bench.distill_tables import PAGE, filled

SIX = ("ce", "kd", "fitnets", "minilm", "dfad_as_published", "dfad")
EMPTY = "<!-- table: {} -->\nold\n<!-- end -->"


def result_of(name, systems, *, right, seeds=3, n=200):
    """A case whose systems are right on the stated shares of the examples (0.8 where not said)."""
    labels = np.arange(n) % 10
    outputs = {}
    for system in systems:
        for seed in range(seeds):
            said = labels.copy()
            said[: round(n * (1 - right.get(system, 0.8))) + seed] += 1
            outputs[system, seed] = np.eye(10)[said % 10]
    cells = tuple(
        Cell(case=name, system=system, seed=seed, settings="", teacher="", values={"accuracy": _share(logits, labels)},
             dev=0.0, student_start="random", params=25_000, seconds=1.0, outputs="")
        for (system, seed), logits in outputs.items()
    )  # fmt: skip
    return CaseResult(
        case=name, metrics={"accuracy": accuracy}, labels=labels, weight=np.ones(n), cells=cells, outputs=outputs,
        teacher=np.eye(10)[labels], teacher_params=500_000, teacher_start="random", student_start="random",
        params=25_000, tuned_here=False,
    )  # fmt: skip


def _share(logits, labels):
    return float((logits.argmax(1) == labels).mean())


@pytest.fixture
def read(tmp_path):
    def read(*results):
        path = tmp_path / "distill.json"
        path.write_text(json.dumps({"meta": {}, "rows": rows_of(results, replicates=50)}))
        return cases_read(path)

    return read


def test_the_pages_tables_are_what_the_result_file_says():
    page = PAGE.read_text()
    assert page.count("<!-- table: ") == page.count("<!-- end -->") > 0
    assert filled(page, cases=cases_read()) == page, "make bench NAME=distill-tables writes them anew"


def test_a_table_has_the_means_and_marks_the_differences_that_are_sure(read):
    right = {"kd": 0.7, "dfad": 0.9, "fitnets": 0.9}
    cases = read(result_of("cnn>vit32x3/digits", ("kd", "fitnets", "dfad"), right=right))
    line = filled(EMPTY.format("values digits"), cases=cases).splitlines()[3]
    fields = [field.strip() for field in line.strip("|").split("|")]
    assert fields[:3] == ["cnn>vit32x3/digits", "accuracy", "100.0 (100.0–100.0)"]
    assert [field.split()[0] for field in fields[3:6]] == ["69.5", "89.5", "89.5"]
    assert fields[6].startswith("**20.0 (")
    assert fields[7] == "0.0 (0.0 to 0.0)"


def test_a_family_without_rows_says_so_and_an_unknown_table_is_an_error(read):
    cases = read(result_of("cnn>vit32x3/digits", ("kd", "dfad"), right={}))
    assert (
        filled(EMPTY.format("values films"), cases=cases) == "<!-- table: values films -->\nNot run yet.\n<!-- end -->"
    )
    assert "Not run yet." in filled(EMPTY.format("mends digits"), cases=cases)
    with pytest.raises(KeyError):
        filled(EMPTY.format("nix digits"), cases=cases)


def test_mends_are_named_with_what_they_are(read):
    cases = read(result_of("cnn>vit32x3/digits", ("dfad", "no_floor", "bell"), right={"no_floor": 0.5}))
    lines = filled(EMPTY.format("mends digits"), cases=cases).splitlines()
    assert lines[3].startswith("| `no_floor` | ε = 0 | **−30.0 (")
    assert lines[4].startswith("| `bell` |")


def test_pictures_are_drawn_of_whatever_is_there(read, tmp_path):
    few = draw(read(result_of("cnn>vit32x3/digits", ("kd",), right={})), out=tmp_path / "few")
    assert [path.name for path in few] == ["distill-digits.png"]
    tasks = ("sst2", "mrpc", "rte", "cola", "banking77", "ag_news", "clinc150")
    results = [result_of(f"mpnet>{s}/{t}", SIX, right={"dfad": 0.95}) for t in tasks for s in ("a", "b")]
    results.append(result_of("lightgbm>tab/fraud", (*SIX, "no_floor", "bell"), right={"dfad_as_published": 0.1}))
    many = draw(read(*results), out=tmp_path / "many")
    names = ["fraud", "text-a", "text-b", "gain", "ablation", "retention"]
    assert [path.name for path in many] == [f"distill-{name}.png" for name in names]
    for path in (*few, *many):
        picture = Image.open(path).convert("L")
        assert picture.width == 1440
        assert np.asarray(picture).std() > 5, f"{path.name} is blank"
