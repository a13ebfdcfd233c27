"""The further inputs of a mapped table as numbers: an artifact keeps the mapping and each category's vocabulary.

Encoded rows are (n, numbers + categories) float32: first the numbers as they are, then one code a category. Code 0 is
"unknown": whatever training saw fewer than LEAST times, or never. They stand behind the features of `fraud_features`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_core.config import to_mapping
from ml_core.data.mapped_table import MappedTable, input_values
from ml_core.data.mapping import InputColumn, TableMapping, mapping_from
from ml_core.errors import InputError

LEAST = 5  # of training rows: a rarer value has too little to learn from, and gives "unknown" something to learn from
Raw = Mapping[str, str | float | bool | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtraInputs:
    """A mapping and the vocabulary of each of its categories, sorted; value k of a vocabulary has the code k + 1."""

    mapping: TableMapping
    vocabulary: dict[str, tuple[str, ...]]

    @property
    def numbers(self) -> tuple[InputColumn, ...]:
        """The inputs that are numbers, in the order of their columns."""
        return tuple(each for each in self.mapping.inputs if each.kind != "category")

    @property
    def categories(self) -> tuple[InputColumn, ...]:
        """The inputs that are categories, in the order of their columns."""
        return tuple(each for each in self.mapping.inputs if each.kind == "category")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each category, "unknown" included."""
        return tuple(1 + len(self.vocabulary[each.key]) for each in self.categories)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the encoded columns."""
        return tuple(each.key for each in (*self.numbers, *self.categories))

    def encode(self, extras: Mapping[str, npt.NDArray]) -> npt.NDArray[np.float32]:
        """Encoded rows of raw columns (as of MappedTable.extras)."""
        columns = [extras[each.key] for each in self.numbers]
        columns += [self._codes(each.key, extras[each.key]) for each in self.categories]
        return np.stack(columns, 1).astype(np.float32)

    def encode_raw(self, rows: Sequence[Raw], *, at: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Encoded rows of single transactions: for each a value a column of the mapping, absent ones being null.

        Raises InputError for names that the mapping does not have, and values that break its rules.
        """
        import pyarrow as pa

        known = {each.column for each in self.mapping.inputs}
        if unknown := sorted({name for row in rows for name in row} - known):
            raise InputError(f"extras: unknown {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        raw = {}
        for each in self.mapping.inputs:
            try:
                column = pa.array([row.get(each.column) for row in rows])
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise InputError(f"extras.{each.column}: {error}") from error
            raw[each.key] = input_values(column, each, at=at, where=f"extras.{each.column}")
        return self.encode(raw)

    def to_config(self) -> dict[str, object]:
        """The plain form that a manifest keeps."""
        return {"mapping": to_mapping(self.mapping), "vocabulary": {k: list(v) for k, v in self.vocabulary.items()}}

    def _codes(self, key: str, values: npt.NDArray) -> npt.NDArray[np.int64]:
        known = np.array(self.vocabulary[key], dtype=str)
        if not len(known):
            return np.zeros(len(values), np.int64)
        place = np.minimum(np.searchsorted(known, values), len(known) - 1)
        return np.where(known[place] == values, place + 1, 0)


def fit_extras(mapping: TableMapping, mapped: MappedTable, *, rows: npt.NDArray[np.bool_]) -> ExtraInputs | None:
    """Vocabularies of the training rows `rows` (a mask over the table); None where the mapping has no inputs."""
    if not mapping.inputs:
        return None
    vocabulary = {}
    for each in mapping.inputs:
        if each.kind == "category":
            values, counts = np.unique(mapped.extras[each.key][rows], return_counts=True)
            vocabulary[each.key] = tuple(str(value) for value in values[counts >= LEAST])
    return ExtraInputs(mapping=mapping, vocabulary=vocabulary)


def extras_of(config: Mapping[str, object]) -> ExtraInputs | None:
    """The further inputs that an artifact's config declares, None where it declares none."""
    body = config.get("extras")
    if body is None:
        return None
    if not isinstance(body, Mapping) or not isinstance(body.get("vocabulary"), Mapping):
        raise InputError("extras: a mapping and a vocabulary are needed")
    vocabulary = {str(name): tuple(map(str, values)) for name, values in body["vocabulary"].items()}
    extras = ExtraInputs(mapping=mapping_from(body.get("mapping", {})), vocabulary=vocabulary)
    if {each.key for each in extras.categories} != set(vocabulary):
        raise InputError("extras: the vocabulary's categories are not those of the mapping")
    return extras
