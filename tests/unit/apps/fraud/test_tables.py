"""What the alert page draws."""

from apps.fraud import tables


def reasons(*points: float) -> list[dict[str, object]]:
    return [{"text": str(each), "points": each} for each in points]


def test_reasons_stand_by_their_points_and_the_weak_ones_are_told_as_one_sum():
    bars, rest = tables.reason_bars(reasons(-0.04, 12.0, -3.0, 0.01))
    assert [bar.points for bar in bars] == [12.0, -3.0]
    assert round(rest, 2) == -0.03


def test_at_most_as_many_reasons_as_asked_for_are_shown():
    bars, rest = tables.reason_bars(reasons(1.0, 2.0, 3.0), shown=2)
    assert [bar.points for bar in bars] == [3.0, 2.0]
    assert rest == 1.0


def test_weak_reasons_are_shown_when_there_are_no_others():
    bars, rest = tables.reason_bars(reasons(0.01, -0.02))
    assert [bar.points for bar in bars] == [0.01, -0.02]
    assert rest == 0
