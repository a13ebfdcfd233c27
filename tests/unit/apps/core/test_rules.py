"""Words for times, money, scores and spans."""

from datetime import UTC, datetime, timedelta

import pytest

from apps.core import rules

NOW = datetime(2026, 5, 12, 14, 5, 11, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"), (86_400, "1 d")]
)
def test_a_span_is_told_in_one_unit(seconds, words):
    assert rules.span_words(seconds) == words


@pytest.mark.parametrize(
    ("ago", "words"),
    [
        (timedelta(seconds=3), "3 s"),
        (timedelta(minutes=12), "12 min"),
        (timedelta(hours=23, minutes=59), "23 h"),
        (timedelta(minutes=-5), "in 5 min"),
        (timedelta(days=2), "10 May 14:05"),
        (timedelta(days=400), "7 Apr 2025"),
    ],
)
def test_a_moment_is_relative_within_a_day_and_a_date_beyond(ago, words):
    assert rules.when_words(NOW - ago, now=NOW) == words


@pytest.mark.parametrize(
    ("cents", "currency", "words"),
    [
        (124_000, "EUR", "1,240.00 €"),
        (5, "EUR", "0.05 €"),
        (-199, "GBP", "-1.99 £"),
        (1240, "JPY", "1,240 ¥"),
        (100, "CHF", "1.00 CHF"),
    ],
)
def test_money_has_separators_and_its_currency(cents, currency, words):
    assert rules.money_words(cents, currency=currency) == words


@pytest.mark.parametrize(
    ("probability", "band"), [(1.0, "critical"), (0.9, "critical"), (0.899, "high"), (0.4, "medium"), (0.0, "low")]
)
def test_every_probability_has_a_band(probability, band):
    assert rules.band_of(probability)[1] == band


def test_a_number_below_zero_has_no_band():
    with pytest.raises(ValueError, match="lies in"):
        rules.band_of(-0.1)


@pytest.mark.parametrize(
    ("points", "words"), [(41.2, "+41"), (-6.0, "−6"), (0.31, "+0.3"), (-0.96, "−1"), (-0.04, "0")]
)
def test_points_carry_their_sign(points, words):
    assert rules.points_words(points) == words
