"""Reading a table through a mapping: units, times, nulls, and errors that name field, column and row."""

from datetime import date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from testkit.shared import SHARED, needs_shared

from ml_core.data.handbook import Table, read_table
from ml_core.data.mapped_table import MappedTable, join_mapped, read_mapped
from ml_core.data.mapping import TableMapping, mapping_from, read_mapping
from ml_core.errors import InputError

FRAUD = SHARED / "data" / "fraud"
MAPPINGS = Path(__file__).resolve().parents[4] / "ml_core" / "data" / "mappings"
AT = [datetime(2026, 3, 1, 12, 0, second) for second in (2, 1, 0)]


def mapping(*inputs: dict, unit: str = "cents", time: str = "") -> TableMapping:
    return mapping_from(
        {
            "name": "ours", "id": "tx", "card": "payer", "terminal": "shop",
            "time": {"column": "booked", "format": time}, "amount": {"column": "paid", "unit": unit},
            "fraud": {"column": "bad", "delay_days": 3}, "inputs": list(inputs),
        }
    )  # fmt: skip


def table(folder: Path, *, name: str = "t.parquet", **changed: object) -> Path:
    columns = {"tx": [1, 2, 3], "payer": ["a", "b", "a"], "shop": [7, 8, 7], "booked": AT, "paid": [100, 250, 0]}
    columns |= {"bad": [False, True, False], **changed}
    path = folder / name
    frame = pa.table({key: value for key, value in columns.items() if value is not None})
    (pq.write_table if path.suffix == ".parquet" else pyarrow.csv.write_csv)(frame, path)
    return path


def test_rows_come_in_time_order_with_their_inputs(tmp_path: Path) -> None:
    got = read_mapped(table(tmp_path, scheme=["x", None, "NA"]), mapping({"column": "scheme", "kind": "category"}))
    assert got.table.id.tolist() == [3, 2, 1]
    assert got.table.card.tolist() == ["a", "b", "a"]
    assert got.table.cents.tolist() == [0, 250, 100]
    assert got.table.fraud.tolist() == [False, True, False]
    assert got.extras["scheme"].tolist() == ["NA", "", "x"]
    assert got.delay_days == 3


@pytest.mark.parametrize(
    ("unit", "paid", "cents"),
    [
        ("cents", [100, 250, 0], [0, 250, 100]),
        ("whole", [100, 250, 0], [0, 25_000, 10_000]),
        ("whole", [100.0, 250.0, 0.0], [0, 25_000, 10_000]),
        ("decimal", [1108.8500000000001, 2.5, 0.125], [12, 250, 110_885]),
        ("decimal", pa.array([110, 250, 1], pa.decimal128(9, 0)).cast(pa.decimal128(9, 2)), [100, 25_000, 11_000]),
    ],
)
def test_units_end_in_whole_cents(tmp_path: Path, unit: str, paid: object, cents: list[int]) -> None:
    assert read_mapped(table(tmp_path, paid=paid), mapping(unit=unit)).table.cents.tolist() == cents


def test_text_times_and_zones_are_read_as_utc(tmp_path: Path) -> None:
    seconds = [1_772_366_400, 1_772_366_401, 1_772_366_402]
    naive = read_mapped(table(tmp_path), mapping()).table.at
    zoned = table(tmp_path, booked=pa.array(AT, pa.timestamp("ns", tz="UTC")).cast(pa.timestamp("ns", "Asia/Tokyo")))
    assert naive.tolist() == seconds
    assert read_mapped(zoned, mapping()).table.at.tolist() == seconds
    text = table(tmp_path, booked=[f"01.03.2026 12:00:0{k}" for k in (2, 1, 0)])
    assert read_mapped(text, mapping(time="%d.%m.%Y %H:%M:%S")).table.at.tolist() == seconds
    offset = table(tmp_path, booked=[f"2026-03-01 21:00:0{k}+0900" for k in (2, 1, 0)])
    assert read_mapped(offset, mapping(time="%Y-%m-%d %H:%M:%S%z")).table.at.tolist() == seconds


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"payer": None}, "mapping.card: .*t.parquet has no column 'payer'; it has tx, shop, booked, paid, bad"),
        ({"payer": ["a", None, "a"]}, "mapping.card: column 'payer' is null in 1 row, the first is row 1"),
        ({"payer": ["a", "b", ""]}, "mapping.card: column 'payer' is empty in 1 row, the first is row 2"),
        ({"payer": [1.0, 2.0, 3.0]}, "mapping.card: column 'payer' is double; a key is a whole number or text"),
        ({"tx": [1, 2, 1]}, "mapping.id: column 'tx' is not unique in 1 row, the first is row 2"),
        ({"booked": ["a", "b", "c"]}, "mapping.time: column 'booked' is string; it must be a timestamp"),
        ({"booked": [None, *AT[1:]]}, "mapping.time: column 'booked' is null in 1 row, the first is row 0"),
        ({"paid": [100, -1, -2]}, "mapping.amount: column 'paid' is negative in 2 rows, the first is row 1"),
        (
            {"paid": [1.5, 1.0, 2.0]},
            "mapping.amount: .*no whole number .unit 'cents' needs one. in 1 row, .*row 0",
        ),
        ({"paid": [1.0, np.inf, 2.0]}, "mapping.amount: .*not finite"),
        ({"paid": [1, 10**14, 2]}, "mapping.amount: .*too large in 1 row, the first is row 1"),
        ({"paid": ["1", "2", "3"]}, "mapping.amount: column 'paid' is string; an amount is a number"),
        ({"bad": [0, 1, 2]}, "mapping.fraud: column 'bad' is neither 0 nor 1 in 1 row, the first is row 2"),
        ({"bad": ["no", "yes", "no"]}, "mapping.fraud: column 'bad' is string; a label is true/false or 0/1"),
    ],
)
def test_a_fault_names_field_column_and_row(tmp_path: Path, changed: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        read_mapped(table(tmp_path, **changed), mapping())


@pytest.mark.parametrize(
    ("declared", "values", "named"),
    [
        ({"kind": "category"}, [1.5, 2.5, 3.5], "mapping.inputs.0.: column 'x' is double; a category is text"),
        ({"kind": "number"}, ["1", "2", "3"], "mapping.inputs.0.: column 'x' is string; a number is"),
        (
            {"kind": "number"},
            [1.0, None, 2.0],
            "is null .`mapping.inputs.0..null` may say .*in 1 row",
        ),
        ({"kind": "number"}, [1.0, float("nan"), 2.0], "is not finite in 1 row, the first is row 1"),
        ({"kind": "days_until"}, ["03/26", "04/26", "05/26"], "must be a timestamp or a date, or text with a format"),
        ({"kind": "days_until", "format": "%m/%y"}, ["03/26", "2026", "05/26"], "holds '2026', which is not of the fo"),
        ({"kind": "days_until", "format": "%m/%y"}, [1, 2, 3], "column 'x' is int64; it must be text, since it has"),
    ],
)
def test_a_fault_of_an_input_names_it(tmp_path: Path, declared: dict, values: list, named: str) -> None:
    with pytest.raises(InputError, match=named):
        read_mapped(table(tmp_path, x=values), mapping({"column": "x", **declared}))


def test_inputs_of_every_kind_with_what_a_null_stands_for(tmp_path: Path) -> None:
    inputs = (
        {"column": "present", "kind": "category"},
        {"column": "country", "kind": "category", "null": "NA"},
        {"column": "score", "kind": "number", "null": -1},
        {"column": "expires", "kind": "days_until", "format": "%m/%y", "name": "left"},
        {"column": "opened", "kind": "days_until", "null": 0},
    )
    path = table(
        tmp_path, present=[True, False, None], country=pa.array(["US", None, "US"]).dictionary_encode(),
        score=[1, None, 2], expires=["04/26", "02/26", "03/26"], opened=[date(2026, 2, 1), None, date(2026, 3, 2)],
    )  # fmt: skip
    got = read_mapped(path, mapping(*inputs)).extras
    assert got["present"].tolist() == ["", "false", "true"]
    assert got["country"].tolist() == ["US", "NA", "US"]
    assert got["score"].tolist() == [2.0, -1.0, 1.0]
    second = 1 / 86_400
    assert got["left"] == pytest.approx([-0.5, -28.5 - second, 30.5 - 2 * second], abs=1e-9)
    assert got["opened"] == pytest.approx([0.5, 0.0, -28.5 - 2 * second], abs=1e-9)


def test_csv_keeps_the_text_na_and_takes_an_empty_cell_for_a_null(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("tx,payer,shop,booked,paid,bad,country,code\n1,a,7,2026-03-01 12:00:00,100,true,NA,007\n"
                    "2,b,8,2026-03-01 12:00:01,250,false,,7\n")  # fmt: skip
    inputs = ({"column": "country", "kind": "category", "null": "none"}, {"column": "code", "kind": "category"})
    got = read_mapped(path, mapping(*inputs))
    assert got.extras["country"].tolist() == ["NA", "none"]
    assert got.extras["code"].tolist() == ["007", "7"]
    assert (got.table.fraud.tolist(), got.table.cents.tolist()) == ([True, False], [100, 250])
    path.write_text(path.read_text().replace("1,a,7", "1,,7"))
    with pytest.raises(InputError, match="mapping.card: column 'payer' is null in 1 row, the first is row 0"):
        read_mapped(path, mapping())


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["7", "10", "-3"], [7, 10, -3]),
        (["007", "7", "10"], ["007", "7", "10"]),
        (["7", "0x", "1e2"], ["7", "0x", "1e2"]),
    ],
)
def test_keys_of_a_csv_are_numbers_only_where_nothing_is_lost_by_it(tmp_path: Path, written: list, read: list) -> None:
    lines = [f"{place},{card},shop,2026-03-01 12:00:0{place},100,false" for place, card in enumerate(written)]
    (tmp_path / "t.csv").write_text("\n".join(["tx,payer,shop,booked,paid,bad", *lines]))
    got = read_mapped(tmp_path / "t.csv", mapping()).table
    assert (got.card.tolist(), got.id.tolist(), got.terminal.tolist()) == (read, [0, 1, 2], ["shop"] * 3)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t.xlsx: not one of .parquet, .csv, .csv.gz"):
        read_mapped(tmp_path / "t.xlsx", mapping())
    with pytest.raises(InputError, match="gone.parquet cannot be read"):
        read_mapped(tmp_path / "gone.parquet", mapping())


def test_a_history_and_what_follows_it_are_joined_inputs_included(tmp_path: Path) -> None:
    declared = mapping({"column": "scheme", "kind": "category"})
    late = [moment.replace(day=2) for moment in AT]
    first = read_mapped(table(tmp_path, scheme=["x", "y", "z"]), declared)
    second = read_mapped(table(tmp_path, scheme=["u", "v", "w"], tx=["4", "5", "6"], booked=late), declared)
    whole = join_mapped(first, second)
    assert whole.table.id.tolist() == ["3", "2", "1", "6", "5", "4"]
    assert whole.extras["scheme"].tolist() == ["z", "y", "x", "w", "v", "u"]
    with pytest.raises(InputError, match="before the history"):
        join_mapped(second, first)


def equal(first: Table, second: Table) -> bool:
    pairs = [(getattr(first, name), getattr(second, name)) for name in Table.__slots__]
    return all(a.dtype == b.dtype and (a == b).all() for a, b in pairs)


@needs_shared
@pytest.mark.shared
def test_the_handbook_by_its_mapping_is_the_handbook() -> None:
    path = FRAUD / "handbook_raw_2018-04-01_2018-09-04.parquet"
    mapped = read_mapped(path, read_mapping(MAPPINGS / "handbook.toml"))
    assert equal(mapped.table, read_table(path))
    assert mapped.extras == {}


@needs_shared
@pytest.mark.shared
def test_the_second_schema_is_read_with_namibia() -> None:
    path = FRAUD / "alteryx_fraud_transactions.parquet"
    mapped: MappedTable = read_mapped(path, read_mapping(MAPPINGS / "alteryx_fraud_transactions.toml"))
    assert (len(mapped), int(mapped.table.fraud.sum())) == (99_992, 15_179)
    assert (mapped.table.cents.min(), mapped.table.cents.max()) == (3, 100_000)
    assert (mapped.extras["country"] == "NA").sum() == 87
    assert {name: values.dtype.kind for name, values in mapped.extras.items()} == {
        "currency": "U", "provider": "U", "customer_present": "U", "country": "U", "region": "U",
        "latitude": "f", "longitude": "f", "days_until_expiry": "f",
    }  # fmt: skip
    assert -400 < mapped.extras["days_until_expiry"].min() < mapped.extras["days_until_expiry"].max() < 4_000
