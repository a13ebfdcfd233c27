"""Money, card numbers, rules: pure functions."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.fraud import rules


@pytest.mark.parametrize(
    ("value", "cents"),
    [
        (1108.8500000000001, 110_885),  # float noise gives the label away in the Handbook's file
        (1108.85, 110_885),
        ("0.005", 1),
        ("0.004999", 0),
        (0, 0),
        ("1e3", 100_000),
        (Decimal("12.345"), 1_235),
        (1.005, 101),
    ],
)
def test_money_becomes_whole_cents_at_half_a_cent_up(value, cents):
    assert rules.money_cents(value) == cents


@pytest.mark.parametrize("value", ["", "abc", None, "nan", "inf", "-0.01", True, "1e30", "1,50"])
def test_what_is_no_amount_is_refused_with_a_sentence(value):
    with pytest.raises(ValueError, match="amount"):
        rules.money_cents(value)


@given(st.integers(min_value=0, max_value=10**9))
def test_cents_survive_the_way_through_a_float(cents):
    assert rules.money_cents(cents / 100) == cents


@pytest.mark.parametrize(
    ("card", "shown"),
    [
        ("4539 5300 1234 1187", "4539 53•• •••• 1187"),
        ("4539-5300-1234-1187", "4539 53•• •••• 1187"),
        ("378282246310005", "3782 82•• •••0 005"),
        ("123", "C-0123"),
        ("12345", "C-12345"),
        ("card 4539530012341187 of Ann", "card 4539 53•• •••• 1187 of Ann"),
        ("abc-7", "abc-7"),
    ],
)
def test_a_card_is_shown_by_six_and_four_digits_at_most(card, shown):
    assert rules.card_display(card) == shown


@given(st.from_regex(r"\A[0-9]{12,19}\Z"))
def test_no_card_number_can_be_read_from_its_display_or_token(number):
    assert number not in rules.card_display(number).replace(" ", "")
    assert number not in rules.card_token(number, key="k")


def test_the_token_ignores_how_a_card_number_is_spaced_and_depends_on_the_key():
    token = rules.card_token("4539530012341187", key="k")
    assert rules.card_token("4539 5300 1234 1187", key="k") == token
    assert rules.card_token("4539530012341187", key="other") != token
    assert len(token) == 64


def test_night_velocity_multiple_and_size_each_have_their_rule():
    hits = rules.rules_hit(
        at_local=datetime(2026, 5, 1, 3, 12, tzinfo=UTC),
        amount_cents=100_000,
        since_previous_s=[30, 200, 599],
        usual_cents=10_000,
    )
    assert [hit.code for hit in hits] == ["R1", "R2", "R3", "R4"]
    noon = datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert rules.rules_hit(at_local=noon, amount_cents=4_999, since_previous_s=[601, 700, 800], usual_cents=100) == []


@pytest.mark.parametrize("name", ["CVV", "cvc2", "card_security_code", "PIN", "Security-Code"])
def test_fields_that_must_never_be_stored_are_known_by_name(name):
    assert rules.is_card_secret(name)
