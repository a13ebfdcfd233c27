"""Prepared queries say what the ORM's own say, and refuse what they cannot."""

import pytest
from django.db import connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from apps.core import clock
from apps.core.prepared import Prepared
from apps.fraud.models import Card

pytestmark = pytest.mark.django_db


@pytest.fixture
def cards():
    return Card.objects.bulk_create([Card(token=f"t{n}", display=f"d{n % 3}") for n in range(9)])


def test_it_says_what_the_query_says_for_every_number_of_values(cards):
    query = lambda tokens: Card.objects.filter(token__in=tokens).order_by("id").values_list("id", "display")  # noqa: E731
    prepared = Prepared(query)
    for count in (1, 2, 9):
        wanted = [card.token for card in cards[:count]]
        assert prepared.rows(wanted) == list(query(wanted))
    assert prepared.rows([*wanted, *wanted]) == list(query(wanted))
    assert prepared.rows(["no such"]) == []


def test_nothing_is_asked_where_a_list_is_empty(cards):
    prepared = Prepared(lambda tokens: Card.objects.filter(token__in=tokens).values_list("id"))
    with CaptureQueriesContext(connection) as asked:
        assert prepared.rows([]) == []
    assert not asked.captured_queries


def test_lists_of_texts_and_of_ids_keep_their_places_beside_what_is_fixed(cards):
    query = lambda displays, ids: (  # noqa: E731
        Card.objects.filter(id__in=ids, display__in=displays).exclude(token="t0").order_by("id").values_list("token")
    )
    prepared, ids = Prepared(query), [card.id for card in cards]
    assert prepared.rows(["d0", "d1"], ids) == list(query(["d0", "d1"], ids)) != []
    assert prepared.rows(["d0"], ids[3:4]) == [("t3",)]
    assert prepared.rows(["d1"], ids[3:4]) == []


def test_a_query_without_lists_is_asked_every_time(cards):
    prepared = Prepared(lambda: Card.objects.order_by("-id").values_list("token")[:1])
    assert prepared.rows() == [("t8",)]
    Card.objects.create(token="t9", display="new")
    assert prepared.rows() == [("t9",)]


def test_columns_come_back_as_the_model_has_them(champion_model):
    from apps.registry.models import ModelVersion

    fields = ("created_at", "metrics", "digest")
    prepared = Prepared(lambda kinds: ModelVersion.objects.filter(kind__in=kinds).values_list(*fields))
    ((created, metrics, digest),) = prepared.rows([champion_model.kind])
    assert (created, metrics, digest) == (champion_model.created_at, champion_model.metrics, champion_model.digest)
    assert created.tzinfo is not None


def test_a_value_that_stands_twice_or_not_at_all_is_refused(cards):
    for build in (
        lambda ids: Card.objects.filter(id__in=ids).filter(id__in=ids).values_list("id"),
        lambda ids: Card.objects.filter(id=F("id") + 0).values_list("id"),
    ):
        with pytest.raises(ValueError, match="once, by __in"):
            Prepared(build).rows([1, 2])
    with pytest.raises(ValueError, match="more than 900"):
        Prepared(lambda ids: Card.objects.filter(id__in=ids).values_list("id")).rows(list(range(901)))


@pytest.fixture
def champion_model():
    from apps.registry.models import ModelVersion

    return ModelVersion.objects.create(
        kind="fraud", digest="a" * 64, folder="x", name="m", state="champion", created_at=clock.now(), created_by="t",
        metrics={"ap": 0.5, "of": ["a"]},
    )  # fmt: skip
