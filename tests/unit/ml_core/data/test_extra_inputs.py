"""Further inputs as numbers: vocabularies of training rows, the unknown, single transactions, the manifest's form."""

import json

import numpy as np
import pytest

from ml_core.data.bank import simulate
from ml_core.data.extra_inputs import LEAST, ExtraInputs, extras_of, fit_extras
from ml_core.data.handbook import table_from_columns
from ml_core.data.mapped_table import MappedTable
from ml_core.data.mapping import TableMapping, mapping_from
from ml_core.errors import InputError

FRAME = {
    "name": "ours", "id": "i", "card": "c", "terminal": "t", "time": {"column": "at"},
    "amount": {"column": "a", "unit": "cents"}, "fraud": {"column": "f"},
}  # fmt: skip
INPUTS = [
    {"column": "scheme", "kind": "category"},
    {"column": "lat", "kind": "number"},
    {"column": "country", "kind": "category", "null": "NA"},
    {"column": "expires", "kind": "days_until", "format": "%m/%y", "name": "left", "null": 0},
]


@pytest.fixture(scope="module")
def mapping() -> TableMapping:
    return mapping_from({**FRAME, "inputs": INPUTS})


@pytest.fixture(scope="module")
def mapped() -> MappedTable:
    table = table_from_columns(simulate(seed=4, cards=30, terminals=20, days=10))
    n = len(table)
    assert n > 40
    scheme = np.array(["visa"] * LEAST + ["rare"] * (LEAST - 1) + ["late"] * (n - 2 * LEAST + 1))
    extras = {
        "scheme": scheme, "lat": np.arange(n) / 7, "country": np.array(["NA", "DE"] * n)[:n], "left": np.full(n, 30.5),
    }  # fmt: skip
    return MappedTable(table=table, extras=extras, delay_days=7)


@pytest.fixture(scope="module")
def fitted(mapping: TableMapping, mapped: MappedTable) -> ExtraInputs:
    extras = fit_extras(mapping, mapped, rows=np.arange(len(mapped)) < 2 * LEAST)
    assert extras is not None
    return extras


def test_only_training_rows_and_only_values_seen_often_enter_the_vocabulary(fitted: ExtraInputs) -> None:
    assert fitted.vocabulary["scheme"] == ("visa",)
    assert fitted.names == ("lat", "left", "scheme", "country")
    assert fitted.sizes == (2, 1 + len(fitted.vocabulary["country"]))


def test_numbers_come_first_and_what_is_not_known_is_zero(fitted: ExtraInputs, mapped: MappedTable) -> None:
    rows = fitted.encode(mapped.extras)
    assert (rows.shape, rows.dtype) == ((len(mapped), 4), np.float32)
    assert rows[:, 0] == pytest.approx(mapped.extras["lat"], rel=1e-6)
    assert (rows[:, 2] == (mapped.extras["scheme"] == "visa")).all()


def test_single_transactions_are_encoded_as_the_table_is(fitted: ExtraInputs) -> None:
    at = np.array([1_772_366_400] * 3)  # 2026-03-01 12:00
    rows = [
        {"scheme": "visa", "lat": 2, "country": "DE", "expires": "04/26"},
        {"scheme": "brand new", "lat": 0.5, "country": None},
        {"lat": 1.5, "country": "NA", "expires": None},
    ]
    encoded = fitted.encode_raw(rows, at=at)
    code = {name: 1 + place for place, name in enumerate(fitted.vocabulary["country"])}
    assert encoded[:, 0].tolist() == [2.0, 0.5, 1.5]
    assert encoded[:, 1].tolist() == [30.5, 0.0, 0.0]
    assert encoded[:, 2].tolist() == [1.0, 0.0, 0.0]
    assert encoded[:, 3].tolist() == [code["DE"], code["NA"], code["NA"]]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"lat": 1.0, "colour": "red"}, "extras: unknown colour; known: country, expires, lat, scheme"),
        ({"scheme": "visa"}, "extras.lat: column 'lat' is null"),
        ({"lat": "north"}, "extras.lat: column 'lat' is string; a number is"),
        ({"lat": 1.0, "expires": "soon"}, "extras.expires: column 'expires' holds 'soon'"),
    ],
)
def test_a_transaction_that_breaks_the_mapping_is_refused(fitted: ExtraInputs, row: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        fitted.encode_raw([row], at=np.zeros(1, np.int64))


def test_values_of_two_types_in_one_request_are_refused(fitted: ExtraInputs) -> None:
    with pytest.raises(InputError, match="extras.lat"):
        fitted.encode_raw([{"lat": 1.0}, {"lat": "2"}], at=np.zeros(2, np.int64))


def test_the_manifest_keeps_everything_and_a_manifest_without_extras_has_none(fitted: ExtraInputs) -> None:
    config = json.loads(json.dumps({"extras": fitted.to_config()}))
    assert extras_of(config) == fitted
    assert extras_of({"student": {}}) is None
    with pytest.raises(InputError, match="vocabulary"):
        extras_of({"extras": {"mapping": FRAME}})
    with pytest.raises(InputError, match="not those of the mapping"):
        extras_of({"extras": {"mapping": {**FRAME, "inputs": INPUTS}, "vocabulary": {"scheme": ["visa"]}}})


def test_a_mapping_without_inputs_leaves_the_models_as_they_are(mapped: MappedTable) -> None:
    assert fit_extras(mapping_from(dict(FRAME)), mapped, rows=np.ones(len(mapped), bool)) is None
