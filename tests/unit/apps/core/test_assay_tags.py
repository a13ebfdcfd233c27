"""Template tags of every page."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.template import Context, Template
from django.utils import timezone

from apps.core import clock


def render(source: str, **context: object) -> str:
    return Template("{% load assay %}" + source).render(Context(context))


def test_when_shows_the_zone_of_the_person_on_hover():
    moment = datetime(2025, 7, 1, 12, 0, tzinfo=UTC)
    with timezone.override(ZoneInfo("Europe/Paris")):
        html = render("{{ at|when }}", at=moment)
    assert 'title="1 Jul 2025, 14:00:00 CEST"' in html
    assert 'datetime="2025-07-01T14:00:00+02:00"' in html
    assert "data-live" not in html


def test_a_recent_time_is_kept_true_by_the_page():
    assert "data-live" in render("{{ at|when }}", at=clock.now())


def test_ago_says_so_within_a_day_and_not_behind_a_date():
    assert ">2 h ago</time>" in render("{{ at|ago }}", at=clock.now() - timedelta(hours=2))
    assert ' data-live=" ago"' in render("{{ at|ago }}", at=clock.now() - timedelta(hours=2))
    assert ">in 4 h</time>" in render("{{ at|ago }}", at=clock.now() + timedelta(hours=5, minutes=-1))
    assert ">7 Jul 2025</time>" in render("{{ at|ago }}", at=datetime(2025, 7, 7, tzinfo=UTC))
    assert render("{{ at|ago }}", at=None) == "–"


def test_when_takes_seconds_since_1970_too():
    assert "1 Jan 1970" in render("{{ at|when }}", at=0)


@pytest.mark.parametrize("source", ["{{ none|when }}", "{{ none|money }}", "{% risk none %}", "{{ none|points }}"])
def test_what_is_absent_is_a_dash(source):
    assert render(source, none=None) == "–"


def test_risk_tells_number_band_and_probability():
    html = render("{% risk p %}", p=0.9701)
    assert 'class="risk r4"' in html
    assert 'title="critical, probability 0.970"' in html
    assert ">97<" in html.replace("</i>", ">")


def test_money_is_escaped():
    assert "<b>" not in render("{{ cents|money:currency }}", cents=100, currency="<b>")
