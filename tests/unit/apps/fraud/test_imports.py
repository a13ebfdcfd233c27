"""The importer: good rows kept, bad ones named, nothing twice, money in cents, hostile bytes."""

import json
from datetime import UTC, datetime, timedelta
from io import StringIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.core.management import CommandError, call_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testkit.fraud import AT

from apps.accounts.api import system_actor
from apps.audit.models import Event
from apps.fraud.models import Alert, Card, Import, ImportBadRow, ScoreBatch, Transaction
from apps.fraud.services import files, imports
from apps.fraud.services.schemas import SchemaError, schema_load

pytestmark = pytest.mark.django_db
HEADER = "TRANSACTION_ID,TX_DATETIME,CUSTOMER_ID,TERMINAL_ID,TX_AMOUNT,TX_FRAUD"
GOOD = "1,2026-05-01 10:00:00,7,3,12.50,0"


def test_good_rows_are_kept_and_bad_ones_named_with_line_and_reason(import_rows):
    report = import_rows(
        GOOD,
        "2,yesterday,7,3,12.50,0",
        "3,2026-05-01 10:00:00,7,3,-1,0",
        "4,2026-05-01 10:00:00,,3,1,0",
        "5,2026-05-01 10:00:00,7,3",
        "6,2026-05-01 10:00:00,7,3,1,maybe",
        "7,2026-05-01 11:00:00,8,3,1.00,1",
    )
    assert (report.rows, report.stored, report.refused, report.scored) == (7, 2, 5, 2)
    assert {bad.line: bad.reason for bad in report.bad} == {
        3: "Invalid isoformat string: 'yesterday'",
        4: "amount is negative: -1",
        5: "card is empty",
        6: "4 cells where the header has 6",
        7: "label is neither 0 nor 1: 'maybe'",
    }
    assert ImportBadRow.objects.count() == 5


def test_the_same_file_twice_changes_nothing(import_rows):
    import_rows(GOOD, "2,2026-05-01 10:01:00,7,3,1,0")
    before = list(Transaction.objects.order_by("pk").values())
    report = import_rows(GOOD, "2,2026-05-01 10:01:00,7,3,1,0")
    assert (report.stored, report.duplicates, report.refused) == (0, 2, 0)
    assert list(Transaction.objects.order_by("pk").values()) == before
    assert ScoreBatch.objects.count() == 1


def test_a_known_id_with_another_content_is_refused_and_the_stored_row_stays(import_rows):
    import_rows(GOOD)
    report = import_rows(GOOD.replace("12.50", "12.51"))
    assert report.bad[0].reason == "id 1 is stored already with another content"
    assert Transaction.objects.get().amount_cents == 1250


def test_an_id_twice_in_one_file_is_stored_once(import_rows):
    report = import_rows(GOOD, GOOD)
    assert (report.stored, report.duplicates) == (1, 1)


def test_labels_become_known_seven_days_after_the_transaction(import_rows):
    import_rows(GOOD, "2,2026-05-02 10:00:00,7,3,1,")
    known, unknown = Transaction.objects.order_by("at")
    assert known.label is False
    assert known.label_known_at == known.at + timedelta(days=7)
    assert unknown.label is None
    assert unknown.label_known_at is None


def test_a_float_with_noise_is_the_same_money_as_one_without(tmp_path, champion):
    noisy, plain = 5 * 221.77, 1108.85
    assert noisy != plain
    columns = {
        "TRANSACTION_ID": [1, 2],
        "TX_DATETIME": [datetime(2026, 5, 1), datetime(2026, 5, 1)],
        "CUSTOMER_ID": [1, 1],
        "TERMINAL_ID": [1, 1],
        "TX_AMOUNT": [1108.8500000000001, plain],
    }
    path = tmp_path / "noise.parquet"
    pq.write_table(pa.table(columns), path)
    imports.file_import(path, schema=schema_load("handbook"), by=system_actor(name="t"), at=AT, score=False)
    assert list(Transaction.objects.values_list("amount_cents", flat=True)) == [110_885, 110_885]


def test_a_card_number_is_never_stored(import_rows):
    import_rows("1,2026-05-01 10:00:00,4539530012341187,4539530012341187,5,0")
    stored = json.dumps(
        [list(model.objects.values()) for model in (Card, Transaction, Import)]
        + [list(Event.objects.values("detail_json", "object_id"))],
        default=str,
    )
    assert "4539530012341187" not in stored
    assert Card.objects.get().display == "4539 53•• •••• 1187"


def test_a_file_with_security_codes_is_refused_as_a_whole(csv_file, champion):
    path = csv_file(
        "1,2026-05-01 10:00:00,7,3,1,0,123",
        header="TRANSACTION_ID,TX_DATETIME,CUSTOMER_ID,TERMINAL_ID,TX_AMOUNT,TX_FRAUD,CVV",
    )
    with pytest.raises(files.FileError, match="nothing was stored"):
        imports.file_import(path, schema=schema_load("handbook"), by=system_actor(name="t"), at=AT)
    assert not Import.objects.exists()


def test_a_file_without_the_columns_names_those_that_are_missing(csv_file, champion):
    path = csv_file("1,2", header="TRANSACTION_ID,TX_DATETIME")
    with pytest.raises(files.FileError, match="CUSTOMER_ID, TERMINAL_ID, TX_AMOUNT"):
        imports.file_import(path, schema=schema_load("handbook"), by=system_actor(name="t"), at=AT)


def test_a_schema_may_declare_cents_a_zone_and_currency_column(tmp_path, champion, csv_file):
    schema = tmp_path / "mine.json"
    columns = {"id": "n", "at": "when", "card": "c", "terminal": "t", "amount": "cents", "currency": "money"}
    schema.write_text(json.dumps({"columns": columns, "amount_unit": "cents", "time_zone": "Europe/Paris"}))
    path = csv_file(
        "1,2026-05-01 10:00:00,7,3,1250,USD", "2,2026-05-01 10:00:00,7,3,0.5,USD", header="n,when,c,t,cents,money"
    )
    report = imports.file_import(path, schema=schema_load(str(schema)), by=system_actor(name="t"), at=AT, score=False)
    row = Transaction.objects.get()
    assert (row.at, row.utc_offset_s) == (datetime(2026, 5, 1, 8, tzinfo=UTC), 7200)
    assert (row.amount_cents, row.currency) == (1250, "USD")
    assert report.bad[0].reason == "amount is not a whole number of cents: 0.5"


@pytest.mark.parametrize(
    "raw", ["[]", "{}", '{"columns": {"id": "x"}}', "nonsense", '{"columns": {"id": "x"}, "unknown": 1}']
)
def test_a_schema_that_says_something_impossible_is_refused(tmp_path, raw):
    path = tmp_path / "bad.json"
    path.write_text(raw)
    with pytest.raises(SchemaError):
        schema_load(str(path))


def test_the_shipped_schemas_load():
    assert {schema_load(name).name for name in ("handbook", "alteryx", "bank")} == {"handbook", "alteryx", "bank"}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=400), st.text(max_size=200).map(lambda text: text.encode())))
def test_no_bytes_whatever_break_the_reader(tmp_path, content):
    path = tmp_path / "any.csv"
    header = b"TRANSACTION_ID,TX_DATETIME,CUSTOMER_ID,TERMINAL_ID,TX_AMOUNT,TX_FRAUD\n"
    path.write_bytes(header + content + b"\n" + GOOD.encode() + b"\n")
    rows = list(files.rows_read(path, schema=schema_load("handbook"), at=AT))
    assert len(rows) <= content.count(b"\n") + content.count(b"\r") + 2
    path.write_bytes(b"PAR1" + content)
    with pytest.raises(files.FileError):
        list(files.rows_read(path, schema=schema_load("handbook"), at=AT))


def test_the_command_prints_counts_and_one_entry_a_bad_row(csv_file, champion):
    out = StringIO()
    path = csv_file(GOOD, "2,never,7,3,1,0")
    call_command("fraud_import", str(path), "--json", "--score", "here", stdout=out, stderr=StringIO())
    body = json.loads(out.getvalue().splitlines()[-1])
    assert (body["stored"], body["refused"], body["scored"]) == (1, 1, 1)
    assert body["rows"] == [
        {"file": "rows.csv", "status": "refused", "line": 3, "reason": "Invalid isoformat string: 'never'"}
    ]


def test_the_command_handles_an_unreadable_file_and_fails_for_an_absent_one(tmp_path):
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 nothing of the kind")
    out = StringIO()
    call_command("fraud_import", str(bad), "--json", "--score", "none", stdout=out, stderr=StringIO())
    assert json.loads(out.getvalue())["files"][0]["status"] == "refused"
    with pytest.raises(CommandError, match="there is no file"):
        call_command("fraud_import", str(tmp_path / "absent.csv"), stdout=out, stderr=StringIO())


def test_a_replayed_file_opens_its_alerts_when_they_happened(import_rows, every_score_alerts):
    import_rows(GOOD, replay=True)
    assert Alert.objects.get().opened_at == datetime(2026, 5, 1, 10, tzinfo=UTC)
