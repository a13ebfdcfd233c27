"""The page on performance: its tables are what the result files say, goals included; pictures take what is there."""

import json

import pytest
from PIL import Image

from tests.bench.kernel_page import NAMES, PAGE, RESULTS, draw, filled, table

META = {
    "date": "2026-11-25T20:00:00Z",
    "command": "python -m ml_core bench dpe --json",
    "versions": {"torch": "2.11", "triton": "3.6.0", "timm": "absent"},
    "machine": {"cpu": "a CPU"},
}


def row(case, system, metric, value, *, unit="ms", n=9):
    spread = {"low": value * 0.9, "high": value * 1.1}
    return {"case": case, "system": system, "metric": metric, "value": value, "unit": unit, "n": n} | spread


ROWS = [
    row("dpe/n8192/fwd", "assay", "ms", 0.55),
    row("dpe/n8192/fwd", "sdpa_no_bias", "ms", 0.45),
    row("dpe/n8192/fwd", "flex_attention", "ms", 1.34),
    row("dpe/n8192/fwd", "assay", "tflops", 300.0),
    row("decode7b/b1/bf16", "assay", "tok_s", 250.0, unit="tokens/s"),
    row("decode7b/b1/bf16", "transformers_eager", "tok_s", 38.6, unit="tokens/s"),
    row("segments/memory_32k_over_4k", "assay", "ratio", 1.005, unit="1", n=1),
]


def test_the_pages_tables_are_what_the_result_files_say():
    page = PAGE.read_text()
    assert page.count("<!-- table: ") == page.count("<!-- end -->") == len(NAMES)
    assert filled(page, results=RESULTS) == page, "make bench NAME=kernel-page writes them anew"


def test_a_table_has_the_best_first_and_holds_ours_against_goal_and_stretch():
    lines = table({"meta": META, "rows": ROWS}).splitlines()
    assert lines[0] == "a CPU, 2026-11-25, torch 2.11, triton 3.6.0; `python -m ml_core bench dpe --json`."
    assert lines[4] == "| dpe/n8192/fwd | ms | `sdpa_no_bias` | 0.45 | 0.405 to 0.495 |  |  |"
    assert lines[5] == "|  |  | `assay` | 0.55 | 0.495 to 0.605 | 0.58 met | 0.5 missed |"
    assert lines[7] == "| decode7b/b1/bf16 | tok_s, tokens/s | `assay` | 250 | 225 to 275 | 270 missed |  |"
    assert lines[9] == "| segments/memory_32k_over_4k | ratio | `assay` | 1 |  | 1.19 met |  |"
    assert len(lines) == 10  # tflops stand in the file alone


def test_a_gpu_is_named_where_there_was_one():
    said = table({"meta": META | {"gpu": {"name": "NVIDIA H200"}}, "rows": ROWS})
    assert said.startswith("NVIDIA H200, 2026-11-25")


def test_what_has_not_run_says_so_and_an_unknown_name_is_an_error(tmp_path):
    page = "<!-- table: {} -->\nold\n<!-- end -->"
    assert "Not run yet." in filled(page.format("dpe"), results=tmp_path)
    with pytest.raises(KeyError, match="kernels"):
        filled(page.format("kernels"), results=tmp_path)


def test_pictures_are_drawn_of_what_is_there(tmp_path):
    (tmp_path / "dpe.json").write_text(json.dumps({"meta": META, "rows": ROWS}))
    (written,) = draw(tmp_path, out=tmp_path / "img")
    with Image.open(written) as picture:
        assert picture.width == 1440
        assert len(picture.getcolors(1 << 20)) > 10
