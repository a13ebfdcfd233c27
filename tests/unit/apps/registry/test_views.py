"""The registry's pages."""

import pytest
from django.urls import reverse
from testkit.artifacts import artifact_make
from testkit.people import make_actor, make_user

from apps.accounts.contracts import Role
from apps.audit.models import Event
from apps.core import clock
from apps.registry import api
from apps.registry.models import ModelVersion, Promotion
from ml_core.contracts import ModelKind

pytestmark = pytest.mark.django_db


@pytest.fixture
def digests(store):
    made = []
    for name in ("first", "second"):
        artifact_make(store / name, name=name, weights=name.encode(), metrics={"ap": 0.7 + 0.01 * len(made)})
        made.append(api.model_register(folder=str(store / name), by=make_actor(), at=clock.now()).key.digest)
    api.model_promote(digest=made[0], by=make_actor(), at=clock.now(), note="the first")
    return made


@pytest.fixture
def admin(client):
    client.force_login(make_user(Role.ADMIN))
    return client


def pages(digest: str) -> list[tuple[str, str]]:
    return [
        ("get", reverse("registry:model_list")),
        ("get", reverse("registry:model_detail", args=[digest])),
        ("post", reverse("registry:model_promote", args=[digest])),
    ]


def test_the_list_shows_versions_by_kind_with_state_and_figures(admin, digests):
    page = admin.get(reverse("registry:model_list")).content.decode()
    for words in (
        "Fraud score",
        "Report draft",
        "No model of this kind",
        "champion",
        "candidate",
        "0.710",
        digests[0][:8],
    ):
        assert words in page


def test_the_list_is_not_empty_of_words_without_models(admin, store):
    assert "registry_sync" in admin.get(reverse("registry:model_list")).content.decode()


def test_a_version_shows_card_metrics_lineage_and_when_it_served(admin, digests):
    page = admin.get(reverse("registry:model_detail", args=[digests[0]])).content.decode()
    for words in ("Trained for a test.", "Average precision", "e" * 64, "serves now", "the first", "Apache-2.0"):
        assert words in page
    assert Event.objects.order_by("-sequence").first().verb == "model.read"


def test_a_card_cannot_bring_script_along(admin, digests):
    ModelVersion.objects.filter(digest=digests[0]).update(card="<script>x</script> [a](javascript:alert(1))")
    page = admin.get(reverse("registry:model_detail", args=[digests[0]])).content.decode()
    assert "<script>x" not in page
    assert 'href="javascript' not in page


def test_promoting_asks_first_and_then_changes_the_champion(admin, digests):
    url = reverse("registry:model_promote", args=[digests[1]])
    assert "instead of" in admin.get(url).content.decode()
    assert api.champion(ModelKind.FRAUD).key.digest == digests[0]
    answer = admin.post(url, {"note": "better"}, follow=True)
    assert api.champion(ModelKind.FRAUD).key.digest == digests[1]
    assert "serves now" in answer.content.decode()
    promotion = Promotion.objects.get(served_to=None)
    assert (promotion.by, promotion.note) == ("admin-1", "better")


def test_promoting_twice_is_promoting_once(admin, digests):
    for _ in range(2):
        assert admin.post(reverse("registry:model_promote", args=[digests[1]])).status_code == 302
    assert Promotion.objects.count() == 2


def test_a_note_that_is_too_long_is_told_and_nothing_is_promoted(admin, digests):
    answer = admin.post(reverse("registry:model_promote", args=[digests[1]]), {"note": "x" * 501})
    assert answer.status_code == 422
    assert api.champion(ModelKind.FRAUD).key.digest == digests[0]


def test_rolling_back_is_offered_once_another_has_served(admin, digests):
    assert "Roll back" not in admin.get(reverse("registry:model_list")).content.decode()
    admin.post(reverse("registry:model_promote", args=[digests[1]]))
    assert f"Roll back to {digests[0][:8]}" in admin.get(reverse("registry:model_list")).content.decode()


def test_an_unknown_digest_is_not_found(admin, store):
    for method, url in pages("f" * 64)[1:]:
        assert getattr(admin, method)(url).status_code == 404


def test_the_wrong_method_is_refused(admin, digests):
    assert admin.post(reverse("registry:model_list")).status_code == 405
    assert admin.post(reverse("registry:model_detail", args=[digests[0]])).status_code == 405
    assert admin.delete(reverse("registry:model_promote", args=[digests[0]])).status_code == 405


def test_who_is_signed_out_is_sent_to_sign_in(client, digests):
    for method, url in pages(digests[0]):
        assert getattr(client, method)(url).url.startswith(reverse("accounts:sign_in"))


@pytest.mark.parametrize("role", [Role.ANALYST, Role.SENIOR_ANALYST, Role.RADIOLOGIST, Role.INTEGRATOR])
def test_a_stranger_finds_nothing(client, digests, role):
    client.force_login(make_user(role))
    assert [getattr(client, method)(url).status_code for method, url in pages(digests[0])] == [404, 404, 404]


def test_an_auditor_reads_and_promotes_nothing(client, digests):
    client.force_login(make_user(Role.AUDITOR))
    assert [getattr(client, method)(url).status_code for method, url in pages(digests[1])] == [200, 200, 404]
    assert "Promote" not in client.get(reverse("registry:model_detail", args=[digests[1]])).content.decode()
    assert api.champion(ModelKind.FRAUD).key.digest == digests[0]
