"""The simulated bank: repeatable, in whole cents, with the frauds that it promises."""

import numpy as np
import pytest

from ml_core.data.bank import BankParameters, Drift, draw_parameters, simulate, write_parquet
from ml_core.data.bank_fraud import LARGE, STOLEN, TERMINAL, FraudParameters
from ml_core.data.handbook import read_table
from ml_core.errors import InputError


def test_one_seed_gives_one_bank_and_another_seed_another() -> None:
    first, again, other = (simulate(seed=s, cards=30, terminals=20, days=20) for s in (1, 1, 2))
    assert all((first[name] == again[name]).all() for name in first)
    assert len(first["TX_AMOUNT"]) != len(other["TX_AMOUNT"])


def test_rows_are_in_time_order_and_amounts_are_whole_cents() -> None:
    bank = simulate(seed=4, cards=200, terminals=100, days=40)
    assert (np.diff(bank["TX_TIME_SECONDS"]) >= 0).all()
    assert (bank["TX_AMOUNT"] == np.round(bank["TX_AMOUNT"], 2)).all()
    assert bank["TX_AMOUNT"].min() >= 0.01


def test_the_published_rules_hold() -> None:
    parameters = BankParameters(fraud=FraudParameters(terminal_rate=2e-3, stolen_rate=2e-3))
    bank = simulate(seed=5, cards=400, terminals=200, days=60, parameters=parameters)
    scenario, fraud = bank["TX_FRAUD_SCENARIO"], bank["TX_FRAUD"]
    assert ((scenario > 0) == (fraud == 1)).all()
    assert set(np.unique(scenario)) <= {0, LARGE, TERMINAL, STOLEN}
    assert (fraud[bank["TX_AMOUNT"] > 220] == 1).all()
    usual = bank["TX_AMOUNT"][scenario == 0].mean()
    assert bank["TX_AMOUNT"][scenario == STOLEN].mean() == pytest.approx(5 * usual, rel=0.4)


def test_richer_banks_plan_takeovers_testing_and_rings() -> None:
    parameters = BankParameters(fraud=FraudParameters(takeover_rate=1e-3, testing_rate=1e-3, mule_rate=1e-3))
    bank = simulate(seed=6, cards=300, terminals=200, days=40, parameters=parameters)
    counts = np.bincount(bank["TX_FRAUD_SCENARIO"], minlength=7)
    assert (counts[4:] > 20).all()


def test_drift_moves_amounts_from_its_day_on() -> None:
    bank = simulate(
        seed=8, cards=200, terminals=100, days=40, parameters=BankParameters(), drift=(Drift(day=20, amount=2.0),)
    )
    late = bank["TX_TIME_DAYS"] >= 20
    genuine = bank["TX_FRAUD"] == 0
    assert bank["TX_AMOUNT"][late & genuine].mean() > 1.5 * bank["TX_AMOUNT"][~late & genuine].mean()


def test_seeds_vary_the_parameters_widely() -> None:
    factors = {draw_parameters(seed=seed).fraud.stolen_factor for seed in range(40)}
    assert len(factors) > 10
    assert 5.0 in factors


def test_the_parquet_reads_back(tmp_path) -> None:
    bank = simulate(seed=9, cards=20, terminals=10, days=10)
    rows = write_parquet(bank, tmp_path / "bank.parquet")
    table = read_table(tmp_path / "bank.parquet")
    assert rows == len(table) == len(bank["TX_FRAUD"])
    assert (table.cents == np.rint(bank["TX_AMOUNT"] * 100)).all()


def test_an_empty_bank_is_refused() -> None:
    with pytest.raises(InputError):
        simulate(seed=1, cards=0)
