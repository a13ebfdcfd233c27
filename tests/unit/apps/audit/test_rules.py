"""Sentences, canonical form and cells of the audit trail."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.audit import rules


@pytest.mark.parametrize(
    ("verb", "kind", "key", "allowed", "detail", "sentence"),
    [
        ("alert.read", "alert", "8812", True, {}, "ann read alert 8812"),
        ("alert.close", "alert", "8812", True, {}, "ann closed alert 8812"),
        ("case.modify", "case", "3", True, {}, "ann modified case 3"),
        ("session.sign_in", "session", "x", True, {}, "ann signed in"),
        ("report.sign", "report", "7", False, {}, "ann was refused to sign report 7"),
        ("transaction.score", "transaction", "", True, {"count": 2048}, "ann scored 2,048 transactions"),
        ("study.read", "study", "", True, {"count": 3}, "ann read 3 studies"),
        ("audit.search", "audit_trail", "", True, {}, "ann searched the audit trail"),
        ("model.promote", "model", "ab12" * 16, True, {}, "ann promoted model ab12ab12"),
    ],
)
def test_an_event_reads_as_a_sentence(verb, kind, key, allowed, detail, sentence):
    told = rules.sentence(name="ann", verb=verb, object_type=kind, object_id=key, allowed=allowed, detail=detail)
    assert told == sentence


def test_the_hash_depends_on_every_part_and_on_the_link_before():
    body = {"sequence": 1, "verb": "a.b", "allowed": True}
    first = rules.link_hash(previous_hash=rules.GENESIS, body=body)
    assert len(first) == 64
    assert rules.link_hash(previous_hash=first, body=body) != first
    for name, other in (("sequence", 2), ("verb", "a.c"), ("allowed", False)):
        assert rules.link_hash(previous_hash=rules.GENESIS, body=body | {name: other}) != first


@given(
    st.dictionaries(
        st.text(), st.one_of(st.text(), st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False))
    )
)
def test_canonical_text_is_ascii_and_does_not_depend_on_order(detail):
    text = rules.canonical(detail)
    assert text.isascii()
    assert rules.canonical(dict(reversed(list(detail.items())))) == text


@given(st.text())
def test_what_is_stored_has_no_nul_and_fits(text):
    stored = rules.storable(text, limit=20)
    assert "\x00" not in stored
    assert len(stored) <= 20


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "  =cmd()", "\r=1"])
def test_no_cell_begins_a_formula(cell):
    assert rules.csv_safe(cell) == "'" + cell


@pytest.mark.parametrize("cell", ["alert 8812", "1-1", "", "a=b"])
def test_an_ordinary_cell_stays_as_it_is(cell):
    assert rules.csv_safe(cell) == cell
