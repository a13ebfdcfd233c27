"""The shipped fraud student behind its contract: equal answers in any batch, reasons that add up, lasting states."""

from pathlib import Path

import pytest

from ml_core.artifacts import read
from ml_core.contracts import EntityState, Label, ModelKey, ModelKind, ScoreRequest, Transaction
from ml_core.data.bank import simulate
from ml_core.data.handbook import events_of, table_from_columns
from ml_core.data.replay import Replay
from ml_core.errors import InputError, StateError
from ml_core.evals.fraud import SHIPPED, score_table
from ml_core.serving.fraud import FraudScorer
from ml_core.serving.fraud_reasons import GROUPS

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def scorer() -> FraudScorer:
    return FraudScorer(SHIPPED)


@pytest.fixture(scope="module")
def history() -> tuple[Transaction, ...]:
    table = table_from_columns(simulate(seed=21, cards=30, terminals=20, days=40))
    return tuple(
        Transaction(
            id=str(table.id[i]),
            at=int(table.at[i]),
            card=f"c{table.card[i]}",
            terminal=f"t{table.terminal[i]}",
            amount_cents=int(table.cents[i]),
            label=bool(table.fraud[i]),
            label_known_at=int(table.at[i]) + 7 * 86_400,
        )
        for i in range(len(table))
    )


def request(scorer: FraudScorer, transactions, *, states=(), labels=(), explain_from=1.1) -> ScoreRequest:
    key = ModelKey(kind=ModelKind.FRAUD, digest=scorer.digest, folder=str(SHIPPED))
    return ScoreRequest(
        model=key, transactions=tuple(transactions), states=tuple(states), labels=labels, explain_from=explain_from
    )


def in_batches(scorer: FraudScorer, transactions, size: int) -> list[float]:
    states: dict[tuple, EntityState] = {}
    out = []
    for begin in range(0, len(transactions), size):
        result = scorer.score(request(scorer, transactions[begin : begin + size], states=states.values()))
        states |= {(state.kind, state.key): state for state in result.states}
        out += [score.probability for score in result.scores]
    return out


def test_a_transaction_alone_scores_as_in_a_batch(scorer, history) -> None:
    some = history[:300]
    whole, alone = in_batches(scorer, some, 300), in_batches(scorer, some, 1)
    assert whole == alone, "to the last bit, so that a recomputed alert is identical"


def test_reasons_do_not_depend_on_what_else_is_explained(scorer, history) -> None:
    some = history[:130]  # two stacks of rows that are explained at once, and two rows over
    together = scorer.score(request(scorer, some, explain_from=0.0)).scores
    states: dict[tuple, EntityState] = {}
    for transaction, score in zip(some, together, strict=True):
        alone = scorer.score(request(scorer, [transaction], states=states.values(), explain_from=0.0))
        states |= {(state.kind, state.key): state for state in alone.states}
        assert alone.scores[0] == score


def test_serving_equals_the_replay_that_evaluation_uses(scorer, history) -> None:
    table = table_from_columns(simulate(seed=21, cards=30, terminals=20, days=40))
    some = table_from_columns(
        {
            "TRANSACTION_ID": table.id[:400],
            "TX_DATETIME": table.at[:400].astype("datetime64[s]"),
            "CUSTOMER_ID": [f"c{c}" for c in table.card[:400]],
            "TERMINAL_ID": [f"t{t}" for t in table.terminal[:400]],
            "TX_AMOUNT": table.cents[:400] / 100,
            "TX_FRAUD": table.fraud[:400],
        }
    )
    assert score_table(scorer, some, first=0) == pytest.approx(in_batches(scorer, history[:400], 100), abs=1e-5)
    assert len(Replay().feed(events_of(some))) == 400


def test_reasons_and_base_sum_to_the_score(scorer, history) -> None:
    result = scorer.score(request(scorer, history[:400], explain_from=0.3))
    explained = [score for score in result.scores if score.reasons]
    assert explained, "the bank has frauds that the student sees"
    for score in explained:
        assert score.base_points + sum(reason.points for reason in score.reasons) == pytest.approx(
            100 * score.probability, abs=2e-3
        )
        assert {reason.feature for reason in score.reasons} == set(GROUPS)
        assert score.features["amount"] > 0
    assert all(not score.features for score in result.scores if not score.reasons)


def test_a_large_amount_is_named_and_a_smaller_one_would_pass(scorer, history) -> None:
    some = [t for t in history if t.at < history[0].at + 30 * 86_400]
    last = some[-1]
    odd = Transaction(
        id="odd", at=last.at + 3_600, card=last.card, terminal=last.terminal, amount_cents=95_000, currency="EUR"
    )
    score = scorer.score(request(scorer, [*some, odd], explain_from=0.5)).scores[-1]
    assert score.probability > 0.5
    assert score.reasons[0].feature in ("amount", "card_history")
    assert any("950.00 EUR" in reason.text for reason in score.reasons)
    amount = next(c for c in score.counterfactuals if c.feature == "amount")
    assert "EUR or less" in amount.text


def test_labels_learnt_later_reach_the_next_score(scorer) -> None:
    day = 86_400
    past = [
        Transaction(id=f"p{i}", at=i * day // 2, card=f"c{i}", terminal="shop", amount_cents=4_000) for i in range(40)
    ]
    states = scorer.score(request(scorer, past)).states
    labels = tuple(
        Label(transaction_id=t.id, at=t.at, card=t.card, terminal="shop", fraud=t.at > 8 * day, known_at=t.at + 7 * day)
        for t in past
    )
    learnt = scorer.learn_labels(states, labels)
    assert {state.key for state in learnt} == {"shop", *(t.card for t in past)}
    now = Transaction(id="n", at=20 * day, card="new", terminal="shop", amount_cents=4_000)
    merged = {(s.kind, s.key): s for s in (*states, *learnt)}
    blind = scorer.score(request(scorer, [now], states=states)).scores[0].probability
    told = scorer.score(request(scorer, [now], states=merged.values())).scores[0].probability
    assert told > 10 * blind
    inside = scorer.score(request(scorer, [now], states=states, labels=labels)).scores[0].probability
    assert inside == told, "labels of the request count like labels learnt before"


def test_unsorted_transactions_and_damaged_states_are_refused(scorer, history) -> None:
    with pytest.raises(InputError, match="sorted"):
        scorer.score(request(scorer, history[:50][::-1]))
    result = scorer.score(request(scorer, history[:5]))
    broken = [EntityState(kind=s.kind, key=s.key, data=s.data[:-3]) for s in result.states]
    with pytest.raises(StateError):
        scorer.score(request(scorer, history[5:10], states=broken))


def test_an_empty_request_is_answered(scorer) -> None:
    result = scorer.score(request(scorer, ()))
    assert result.scores == result.states == ()


def test_the_shipped_student_is_small_int8_and_says_what_it_learnt_from() -> None:
    manifest = read(SHIPPED)
    assert manifest.config["bits"] == 8
    assert sum(entry.bytes for entry in manifest.files.values()) < 12 * 2**20
    assert "simulated" in (SHIPPED / "card.md").read_text()
    assert (ROOT / "docs" / "model-cards" / "fraud-student.md").exists()
