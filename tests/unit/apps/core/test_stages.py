"""Seconds by stage: counted where somebody collects, added up by name, and written as a Server-Timing header."""

import pytest

from apps.core import stages


def test_what_is_measured_inside_is_collected_by_name_and_added_up(monkeypatch):
    ticks = iter([1.0, 1.5, 2.0, 2.25])
    monkeypatch.setattr(stages, "perf_counter", lambda: next(ticks))
    with stages.collected() as seconds:
        for _ in range(2):
            with stages.stage("read"):
                pass
        stages.add("model", 0.004)
    assert seconds == {"read": 0.75, "model": 0.004}
    assert stages.header(seconds) == "read;dur=750.00, model;dur=4.00"


def test_an_error_inside_a_stage_is_counted_and_goes_on(monkeypatch):
    ticks = iter([1.0, 4.0])
    monkeypatch.setattr(stages, "perf_counter", lambda: next(ticks))
    with stages.collected() as seconds, pytest.raises(ZeroDivisionError), stages.stage("write"):
        raise ZeroDivisionError
    assert seconds == {"write": 3.0}


def test_where_nobody_collects_nothing_is_kept():
    with stages.stage("read"):
        pass
    with stages.collected() as seconds:
        pass
    stages.add("late", 1.0)
    assert seconds == {}
