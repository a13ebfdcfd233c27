"""Progress, time left, thinning and lines of events."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.training import rules
from ml_core import recipes

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_every_recipe_on_offer_exists_in_the_engine_and_is_of_its_kind():
    for name, offered in rules.RECIPES.items():
        assert recipes.recipe(name).kind == offered.kind


def test_whole_lines_are_read_and_a_line_still_being_written_is_left():
    body = b'{"kind": "log", "at": 1.5, "text": "a"}\n{"kind": "lo'
    lines, read = rules.lines_parse(body, now=NOW)
    assert [(line.kind, line.at, line.fields) for line in lines] == [("log", 1.5, {"text": "a"})]
    assert body[read:] == b'{"kind": "lo'


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(body):
    lines, read = rules.lines_parse(body + b"\n", now=NOW)
    assert read == len(body) + 1
    assert all(isinstance(line.kind, str) for line in lines)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_no_json_breaks_the_reader(value):
    lines, _read = rules.lines_parse(json.dumps(value).encode() + b"\n", now=NOW)
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("step", "steps", "stage", "stages", "share"),
    [(0, 0, 0, 0, 0.0), (30, 100, 2, 3, 0.3), (100, 100, 3, 3, 1.0), (0, 0, 2, 4, 0.25), (100, 100, 2, 4, 0.5)],
)
def test_progress_goes_by_steps_and_otherwise_by_stages(step, steps, stage, stages, share):
    assert rules.progress(step=step, steps=steps, stage=stage, stages=stages) == pytest.approx(share)


def test_time_left_is_told_at_the_pace_so_far():
    assert rules.seconds_left(step=25, steps=100, elapsed=50) == pytest.approx(150)
    assert rules.seconds_left(step=0, steps=100, elapsed=50) is None
    assert rules.seconds_left(step=100, steps=100, elapsed=50) is None


@given(st.integers(0, 5000), st.integers(2, 400))
def test_thinning_keeps_first_and_last_and_not_too_many(count, most):
    kept = rules.thinned(count, most=most)
    assert len(kept) <= most
    assert kept == sorted(set(kept))
    if count:
        assert (kept[0], kept[-1]) == (0, count - 1)


def test_only_finite_numbers_pass():
    assert rules.numbers({"a": 1, "b": "x", "c": None, "d": True, "e": 0.5}) == {"a": 1.0, "e": 0.5}
    assert rules.numbers(None) == {}
