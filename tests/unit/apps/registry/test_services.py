"""Registering, promoting, rolling back, and who served when."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import IntegrityError, transaction
from testkit.artifacts import artifact_make
from testkit.people import make_actor

from apps.audit.models import Event
from apps.core.errors import NotAllowedError
from apps.registry import api, selectors, services
from apps.registry.models import ModelState, ModelVersion, Promotion
from ml_core.contracts import ModelKind

pytestmark = pytest.mark.django_db
AT = datetime(2026, 5, 3, 14, 0, tzinfo=UTC)
ADMIN = make_actor()


def register(store: Path, name: str = "a", *, kind: ModelKind = ModelKind.FRAUD) -> str:
    artifact_make(store / name, name=name, kind=kind, weights=name.encode())
    return api.model_register(folder=str(store / name), by=ADMIN, at=AT).key.digest


def promote(digest: str, *, minutes: int = 0) -> api.ModelRef:
    return api.model_promote(digest=digest, by=ADMIN, at=AT + timedelta(minutes=minutes))


def test_a_registered_artifact_is_a_candidate_with_its_manifests_facts(store):
    digest = register(store)
    model = ModelVersion.objects.get()
    assert (model.digest, model.state, model.kind, model.name) == (digest, "candidate", "fraud", "a")
    assert model.metrics == {"ap": 0.7, "auc": 0.9}
    assert (model.recipe, model.teacher_digest, model.created_by) == ("fraud_dfad_small", "e" * 64, "admin-1")
    assert (model.data_digest, model.git_revision) == ("d" * 64, "0" * 40)
    assert api.model_get(digest).key.digest == digest


def test_registering_twice_is_registering_once(store):
    first = register(store)
    again = api.model_register(folder=str(store / "a"), by=ADMIN, at=AT)
    assert again.key.digest == first
    assert ModelVersion.objects.count() == 1
    assert Event.objects.filter(verb="model.register").count() == 1


def test_what_serves_is_the_registrys_own_copy(store, settings):
    digest = register(store)
    folder = Path(api.model_get(digest).key.folder)
    assert folder == Path(settings.MEDIA_ROOT) / "models" / digest
    (store / "a" / "model.safetensors").write_bytes(b"other")
    assert promote(digest).state == "champion"


def test_an_altered_artifact_is_not_registered(store):
    artifact_make(store / "a")
    (store / "a" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(api.ArtifactRefusedError, match="does not match its digest"):
        api.model_register(folder=str(store / "a"), by=ADMIN, at=AT)
    assert not ModelVersion.objects.exists()


def test_a_copy_that_was_altered_is_not_promoted(store):
    digest = register(store)
    (Path(api.model_get(digest).key.folder) / "model.safetensors").write_bytes(b"other")
    with pytest.raises(api.ArtifactRefusedError):
        promote(digest)
    with pytest.raises(api.NoChampionError):
        api.champion(ModelKind.FRAUD)


def test_without_a_promotion_there_is_no_champion(store):
    register(store)
    with pytest.raises(api.NoChampionError):
        api.champion(ModelKind.FRAUD)


def test_promoting_changes_the_champion_at_once_and_retires_the_one_before(store):
    first, second = register(store, "a"), register(store, "b")
    promote(first)
    assert api.champion(ModelKind.FRAUD).key.digest == first
    promote(second, minutes=5)
    assert api.champion(ModelKind.FRAUD).key.digest == second
    assert ModelVersion.objects.get(digest=first).state == ModelState.RETIRED
    event = Event.objects.filter(verb="model.promote").order_by("-sequence").first()
    assert (event.object_id, event.detail["before"]) == (second, first)


def test_kinds_do_not_touch_each_other(store):
    fraud, report = register(store, "a"), register(store, "b", kind=ModelKind.REPORT)
    promote(fraud)
    promote(report)
    assert api.champion(ModelKind.FRAUD).key.digest == fraud
    assert api.champion(ModelKind.REPORT).key.digest == report
    assert [ref.key.digest for ref in api.model_list(kind=ModelKind.REPORT)] == [report]


def test_promoting_the_champion_again_changes_nothing(store):
    digest = register(store)
    promote(digest)
    promote(digest, minutes=9)
    assert Promotion.objects.count() == 1
    assert Event.objects.filter(verb="model.promote").count() == 1


def test_it_is_known_who_served_at_any_moment(store):
    first, second = register(store, "a"), register(store, "b")
    promote(first)
    promote(second, minutes=5)

    def digest_at(minutes: float) -> str | None:
        ref = api.served_at(ModelKind.FRAUD, AT + timedelta(minutes=minutes))
        return ref.key.digest if ref else None

    assert digest_at(-1) is None
    assert digest_at(0) == first
    assert digest_at(4.99) == first
    assert digest_at(5) == second
    assert digest_at(10_000) == second


def test_a_promotion_dated_before_the_present_one_never_overlaps_it(store):
    first, second = register(store, "a"), register(store, "b")
    promote(first, minutes=5)
    promote(second, minutes=0)
    assert api.served_at(ModelKind.FRAUD, AT + timedelta(minutes=6)).key.digest == second
    assert Promotion.objects.get(model__digest=first).served_to == AT + timedelta(minutes=5)


def test_rolling_back_promotes_the_previous_and_can_be_rolled_back(store):
    first, second = register(store, "a"), register(store, "b")
    promote(first)
    promote(second, minutes=1)
    services.model_rollback(kind=ModelKind.FRAUD, by=ADMIN, at=AT + timedelta(minutes=2))
    assert api.champion(ModelKind.FRAUD).key.digest == first
    services.model_rollback(kind=ModelKind.FRAUD, by=ADMIN, at=AT + timedelta(minutes=3))
    assert api.champion(ModelKind.FRAUD).key.digest == second


def test_there_is_nothing_to_roll_back_to_at_first(store):
    promote(register(store))
    with pytest.raises(NotAllowedError):
        services.model_rollback(kind=ModelKind.FRAUD, by=ADMIN, at=AT)


def test_the_database_refuses_two_champions_and_two_open_promotions(store):
    promote(register(store, "a"))
    other = ModelVersion.objects.get(digest=register(store, "b"))
    with pytest.raises(IntegrityError), transaction.atomic():
        ModelVersion.objects.filter(pk=other.pk).update(state="champion")
    with pytest.raises(IntegrityError), transaction.atomic():
        Promotion.objects.create(kind="fraud", model=other, served_from=AT, by="x")


def test_an_unknown_digest_is_told(store):
    with pytest.raises(api.ModelNotFoundError):
        api.model_get("f" * 64)
    with pytest.raises(api.ModelNotFoundError):
        promote("f" * 64)


def test_syncing_registers_all_promotes_the_first_of_each_kind_and_is_idempotent(store, capsys):
    fraud = artifact_make(store / "fraud-student", weights=b"1")
    report = artifact_make(store / "report-student", kind=ModelKind.REPORT, weights=b"2")
    call_command("registry_sync", dir=str(store), json=True)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(told["promoted"]) == set(told["registered"]) == {fraud, report}
    call_command("registry_sync", dir=str(store), json=True)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["registered"], told["promoted"], set(told["known"])) == ([], [], {fraud, report})


def test_syncing_names_what_the_engine_refuses_and_goes_on(store, capsys):
    artifact_make(store / "a")
    (store / "a" / "card.md").write_text("other")
    good = artifact_make(store / "b", weights=b"2")
    with pytest.raises(SystemExit):
        call_command("registry_sync", dir=str(store), json=True)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["registered"] == [good]
    assert told["refused"][0]["folder"] == "a"


def test_syncing_leaves_a_champion_where_there_is_one(store):
    chosen = register(store, "own")
    promote(chosen)
    artifact_make(store / "shipped", weights=b"3")
    services.shipped_sync(root=store, by=ADMIN, at=AT)
    assert api.champion(ModelKind.FRAUD).key.digest == chosen


def test_the_version_to_roll_back_to_is_the_last_other_one(store):
    first, second = register(store, "a"), register(store, "b")
    promote(first)
    assert selectors.model_previous(ModelKind.FRAUD) is None
    promote(second, minutes=1)
    assert selectors.model_previous(ModelKind.FRAUD).key.digest == first
