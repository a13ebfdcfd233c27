"""Configurations: strict, typed, and back again."""

from dataclasses import dataclass

import pytest

from ml_core.config import from_mapping, override, to_mapping
from ml_core.contracts import ModelKind, RunSpec
from ml_core.distill.dfad import DFADConfig
from ml_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A part."""

    rate: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Outer:
    """A whole."""

    size: int
    inner: Inner = Inner()
    names: tuple[str, ...] = ()
    flag: bool = False
    limit: float | None = None


def test_it_comes_back_as_it_went():
    config = Outer(size=3, inner=Inner(rate=0.5), names=("a", "b"), limit=2.0)
    assert from_mapping(Outer, to_mapping(config)) == config
    assert from_mapping(DFADConfig, to_mapping(DFADConfig())) == DFADConfig()


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"size": 1, "sizes": 2}, "unknown sizes"),
        ({}, "missing size"),
        ({"size": 1.5}, "Outer.size"),
        ({"size": True}, "Outer.size"),
        ({"size": 1, "flag": 1}, "Outer.flag"),
        ({"size": 1, "inner": {"rates": 1}}, "Outer.inner: unknown rates"),
        ({"size": 1, "names": 4}, "Outer.names"),
        ([], "expected an object"),
    ],
)
def test_what_does_not_fit_is_named(mapping, message):
    with pytest.raises(InputError, match=message):
        from_mapping(Outer, mapping)


def test_a_spec_keeps_the_types_of_its_parameters():
    spec = from_mapping(RunSpec, {"kind": "fraud", "recipe": "r", "params": {"a": 1, "b": 0.5, "c": "1"}})
    assert spec.kind is ModelKind.FRAUD
    assert [type(value) for value in spec.params.values()] == [int, float, str]


def test_texts_override_by_the_type_of_the_field():
    changed = override(Outer(size=1), ["size=7", "inner.rate=3e-5", "flag=true", "names=a,b", "limit=2"])
    assert changed == Outer(size=7, inner=Inner(rate=3e-5), names=("a", "b"), flag=True, limit=2.0)


@pytest.mark.parametrize("pair", ["sizes=1", "size", "size=x", "inner.rates=1", "size.x=1"])
def test_an_override_that_does_not_fit_is_refused(pair):
    with pytest.raises(InputError):
        override(Outer(size=1), [pair])
