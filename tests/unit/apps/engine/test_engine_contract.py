"""What every engine keeps, fake or real: run on both; the real one needs a shipped student of the kind."""

from pathlib import Path

import pytest

from apps.engine.fake import FakeEngine
from ml_core.contracts import (
    DraftRequest,
    EntityKind,
    EntityState,
    ImageInput,
    Label,
    ModelKey,
    ModelKind,
    ScoreRequest,
    StudyInput,
    Transaction,
)
from ml_core.errors import ArtifactError, EngineError, InputError, StateError

PRETRAINED = Path(__file__).resolve().parents[4] / "ml_core" / "pretrained"
DAY = 86_400
START = 1_767_000_000


@pytest.fixture(params=["fake", "local"], scope="module")
def engine(request):
    if request.param == "fake":
        return FakeEngine()
    from ml_core.engine import LocalEngine

    return LocalEngine()


def key_of(engine, kind):
    """The shipped student of the kind, read by the engine itself."""
    folder = PRETRAINED / f"{kind.value}-student"
    if not (folder / "manifest.json").exists():
        pytest.skip(f"no {kind.value} student is shipped yet")
    described = engine.describe(str(folder))
    return ModelKey(kind=described.kind, digest=described.digest, folder=described.folder)


@pytest.fixture
def fraud(engine):
    return key_of(engine, ModelKind.FRAUD)


@pytest.fixture
def report(engine):
    return key_of(engine, ModelKind.REPORT)


def transactions(count=12, *, card="c1", terminal="t1"):
    amounts = [1000 + 37 * i for i in range(count - 1)] + [60_000]
    return tuple(
        Transaction(id=f"x{i:03d}", at=START + i * DAY // 2, card=card, terminal=terminal, amount_cents=amount)
        for i, amount in enumerate(amounts)
    )


def new_states(*, cards=("c1",), terminals=("t1",)):
    made = [EntityState(kind=EntityKind.CARD, key=key) for key in cards]
    return (*made, *(EntityState(kind=EntityKind.TERMINAL, key=key) for key in terminals))


def test_describe_names_the_kind_the_digest_and_the_licence(engine, fraud):
    described = engine.describe(fraud.folder)
    assert described.kind is ModelKind.FRAUD
    assert len(described.digest) == 64
    assert described.parameters > 0
    assert described.licence
    assert described.card


def test_a_folder_without_an_artifact_is_refused(engine, tmp_path):
    with pytest.raises(ArtifactError):
        engine.describe(str(tmp_path))


def test_loading_verifies_that_the_folder_holds_this_very_model(engine, fraud):
    engine.load(fraud)
    with pytest.raises(ArtifactError):
        engine.load(ModelKey(kind=ModelKind.FRAUD, digest="0" * 64, folder=fraud.folder))


def test_scores_come_in_order_with_the_model_that_gave_them(engine, fraud):
    given = transactions()
    result = engine.score(ScoreRequest(model=fraud, transactions=given, states=new_states()))
    assert result.model_digest == fraud.digest
    assert [score.transaction_id for score in result.scores] == [item.id for item in given]
    assert all(0.0 <= score.probability <= 1.0 for score in result.scores)
    assert result.seconds >= 0.0
    assert {(state.kind, state.key) for state in result.states} == {
        (EntityKind.CARD, "c1"),
        (EntityKind.TERMINAL, "t1"),
    }


def test_the_same_request_gives_the_same_answer(engine, fraud):
    request = ScoreRequest(model=fraud, transactions=transactions(), states=new_states(), explain_from=0.0)
    first, second = engine.score(request), engine.score(request)
    assert first.scores == second.scores
    assert first.states == second.states


def test_one_at_a_time_with_the_states_carried_equals_all_at_once(engine, fraud):
    whole = engine.score(ScoreRequest(model=fraud, transactions=transactions(), states=new_states()))
    states = {(state.kind, state.key): state for state in new_states()}
    scores = []
    for item in transactions():
        result = engine.score(ScoreRequest(model=fraud, transactions=(item,), states=tuple(states.values())))
        states |= {(state.kind, state.key): state for state in result.states}
        scores += result.scores
    assert [s.probability for s in scores] == pytest.approx([s.probability for s in whole.scores], abs=1e-5)
    assert {k: s.data for k, s in states.items()} == {(s.kind, s.key): s.data for s in whole.states}


def test_reasons_and_base_sum_to_the_score(engine, fraud):
    request = ScoreRequest(model=fraud, transactions=transactions(), states=new_states(), explain_from=0.0)
    for score in engine.score(request).scores:
        assert score.reasons
        total = score.base_points + sum(reason.points for reason in score.reasons)
        assert total == pytest.approx(100 * score.probability, abs=0.01)
        assert all(reason.text and reason.feature for reason in score.reasons)


def test_nothing_is_explained_below_the_threshold(engine, fraud):
    request = ScoreRequest(model=fraud, transactions=transactions(), states=new_states())
    assert all(not score.reasons for score in engine.score(request).scores)


def test_an_odd_amount_scores_higher_than_the_usual_one(engine, fraud):
    scores = engine.score(ScoreRequest(model=fraud, transactions=transactions(), states=new_states())).scores
    assert scores[-1].probability > scores[-2].probability


def test_transactions_out_of_order_are_refused(engine, fraud):
    given = tuple(reversed(transactions()))
    with pytest.raises(InputError, match="transactions"):
        engine.score(ScoreRequest(model=fraud, transactions=given, states=new_states()))


def test_a_damaged_state_is_refused(engine, fraud):
    states = (EntityState(kind=EntityKind.CARD, key="c1", data=b"damaged"), *new_states(cards=()))
    with pytest.raises(StateError):
        engine.score(ScoreRequest(model=fraud, transactions=transactions(), states=states))


def test_labels_change_the_states_of_their_terminal(engine, fraud):
    given = transactions()
    before = engine.score(ScoreRequest(model=fraud, transactions=given, states=new_states())).states
    label = Label(
        transaction_id=given[-1].id,
        at=given[-1].at,
        card="c1",
        terminal="t1",
        fraud=True,
        known_at=given[-1].at + 7 * DAY,
    )
    changed = engine.learn_labels(fraud, before, (label,))
    old = {(state.kind, state.key): state.data for state in before}
    assert (EntityKind.TERMINAL, "t1") in {(state.kind, state.key) for state in changed}
    assert all(old[state.kind, state.key] != state.data for state in changed)


def test_no_transactions_give_no_scores(engine, fraud):
    result = engine.score(ScoreRequest(model=fraud, transactions=()))
    assert (result.scores, result.states) == ((), ())


def test_a_model_of_the_other_kind_is_refused(engine, fraud, report):
    with pytest.raises(EngineError):
        engine.score(ScoreRequest(model=report, transactions=()))
    with pytest.raises(EngineError):
        engine.draft(DraftRequest(model=fraud, studies=()))


def test_bytes_that_are_no_image_are_declined_and_the_other_studies_go_on(engine, report):
    studies = tuple(
        StudyInput(key=key, images=(ImageInput(key=f"{key}-1", encoded=body),))
        for key, body in (("a", b"not an image"), ("b", b""))
    )
    result = engine.draft(DraftRequest(model=report, studies=studies))
    assert result.model_digest == report.digest
    assert [draft.study_key for draft in result.drafts] == ["a", "b"]
    assert all(draft.declined and draft.declined_reason.endswith(".") for draft in result.drafts)
    assert all(not draft.sentences for draft in result.drafts)


def test_no_studies_give_no_drafts(engine, report):
    assert engine.draft(DraftRequest(model=report, studies=())).drafts == ()
