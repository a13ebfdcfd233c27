"""Training on any bank's table through a declared mapping: its rows, its further inputs, the models made as wide."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from ml_core.config import to_mapping
from ml_core.data.extra_inputs import ExtraInputs, fit_extras
from ml_core.data.fraud_features import FEATURES
from ml_core.data.mapped_table import read_mapped
from ml_core.data.mapping import read_mapping
from ml_core.errors import RunError
from ml_core.models.fraud_student import AMOUNT_BINS, FraudStudentConfig
from ml_core.train.fraud_data import table_samples
from ml_core.train.fraud_stages import FraudTraining, Rows, split_table, table_digest


def mapped_rows(path: Path, *, mapping: Path, limit: int, seed: int, known: ExtraInputs | None = None) -> Rows:
    """Rows of the table at `path`, split in time as table_rows does, its further inputs behind the features.

    Vocabularies come from the training rows alone, or from `known`, a champion's, so that the two can be compared.
    Raises InputError for a table or mapping at fault, RunError for a champion of another mapping.
    """
    declared = read_mapping(mapping)
    if known is not None and known.mapping != declared:
        raise RunError("the champion was made for another mapping, so it cannot be compared with")
    mapped = read_mapped(path, declared)
    if not len(mapped):
        raise RunError(f"{path} holds no transactions")
    split = split_table(mapped.table, limit=limit, seed=seed, delay_days=mapped.delay_days)
    extras = known or fit_extras(declared, mapped, rows=split.train)
    both = table_samples(
        mapped.table,
        keep=split.train | split.guard,
        weight=split.weight,
        extras=None if extras is None else extras.encode(mapped.extras),
        delay_days=mapped.delay_days,
    )
    n = int(split.train.sum())
    what = json.dumps({"table": table_digest(mapped.table), "mapping": to_mapping(declared)}, sort_keys=True)
    return Rows(
        train=both.take(slice(0, n)),
        guard=both.take(slice(n, None)),
        digest=hashlib.sha256(what.encode()).hexdigest(),
        extras=extras,
    )


def with_extras(training: FraudTraining, extras: ExtraInputs | None) -> FraudTraining:
    """The training with its models as wide as the further inputs make them; itself where there are none."""
    if extras is None:
        return training

    def widened(config: FraudStudentConfig) -> FraudStudentConfig:
        return replace(config, features=len(FEATURES) + len(extras.numbers), categories=extras.sizes)

    return replace(training, student=widened(training.student), transformer=widened(training.transformer))


def in_units(training: FraudTraining, rows: Rows) -> FraudTraining:
    """The training with models whose amount steps cover the rows' amounts, where it begins from random weights.

    The unit is the smallest power of ten (1 at least) in which 99.9% of the amounts have an index of their own.
    """
    if training.banks or training.from_champion:
        return training
    most = float(np.quantile(rows.train.features[:, 0], 0.999))
    unit = 10.0 ** max(0, math.ceil(math.log10(max(most, 1.0) / AMOUNT_BINS)))
    return replace(
        training,
        student=replace(training.student, amount_unit=unit),
        transformer=replace(training.transformer, amount_unit=unit),
    )
