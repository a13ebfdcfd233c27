"""The declaration of a schema: what its file may say, and the field that an error names."""

from pathlib import Path

import pytest
from testkit.mapping import RENAMED, SCHEME

from ml_core.config import to_mapping
from ml_core.data.mapping import mapping_from, read_mapping
from ml_core.errors import InputError

MAPPINGS = Path(__file__).resolve().parents[4] / "ml_core" / "data" / "mappings"
GOOD = RENAMED + SCHEME


def written(folder: Path, text: str) -> Path:
    path = folder / "mapping.toml"
    path.write_text(text)
    return path


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    mapping = read_mapping(written(tmp_path, GOOD))
    assert (mapping.fraud.delay_days, mapping.time.format) == (7, "")
    assert [(each.key, each.null) for each in mapping.inputs] == [("scheme", None)]
    assert list(mapping.columns().values()) == ["tx", "payer", "shop", "booked", "paid", "is_fraud", "scheme"]


@pytest.mark.parametrize("path", sorted(MAPPINGS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_mappings_are_read_and_named_after_their_file(path: Path) -> None:
    mapping = read_mapping(path)
    assert mapping.name == path.stem
    assert mapping_from(to_mapping(mapping)) == mapping, "an artifact keeps the plain form"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('card = "payer"\n', "", "mapping: missing card"),
        ('card = "payer"', 'card = ""', "mapping.card: is empty"),
        ('card = "payer"', "card = 3", "mapping.card: 3 is not str"),
        ('card = "payer"', 'card = "payer"\ncurrency = "EUR"', "mapping: unknown currency; known: name, id, card"),
        ('unit = "cents"', 'unit = "pence"', "mapping.amount.unit: 'pence' is not one of 'cents', 'whole', 'decimal'"),
        ('name = "our_bank"', 'name = "our bank"', "mapping.name: 'our bank' is not letters"),
        ('"is_fraud"', '"is_fraud"\ndelay_days = -1', "mapping.fraud.delay_days: -1 is not in 0 to 365"),
        ('kind = "category"', 'kind = "colour"', "mapping.inputs.0..kind: 'colour' is not one of 'category', 'number'"),
        ('column = "scheme"', 'column = "is_fraud"', "mapping.inputs.0..column: 'is_fraud' is read as fraud already"),
        ('column = "scheme"', 'column = "the scheme"', "mapping.inputs.0..name: 'the scheme' is not letters"),
        ('column = "scheme"', 'column = "scheme"\nname = "amount"', "mapping.inputs.0..name: 'amount' is taken"),
        ('"category"', '"category"\n[[inputs]]\ncolumn = "scheme"\nkind = "category"', "inputs.1..name: 'scheme' is t"),
        ('"category"', '"category"\nformat = "%m/%y"', "inputs.0..format: only for kind 'days_until'"),
        ('"category"', '"category"\nnull = 0', "mapping.inputs.0..null: 0.* is not a text"),
        ('"category"', '"number"\nnull = "none"', "mapping.inputs.0..null: 'none' is not a number"),
    ],
)  # fmt: skip
def test_a_fault_names_its_field_and_what_is_allowed(tmp_path: Path, old: str, new: str, named: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError, match=named):
        read_mapping(written(tmp_path, GOOD.replace(old, new)))


def test_a_file_that_is_absent_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere.toml cannot be read"):
        read_mapping(tmp_path / "nowhere.toml")
    with pytest.raises(InputError, match="mapping.toml is not TOML"):
        read_mapping(written(tmp_path, "name = "))
