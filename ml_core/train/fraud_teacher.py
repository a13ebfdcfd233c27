"""The fraud teachers: LightGBM on the features and optionally a larger transformer; both speak as Features."""

from dataclasses import dataclass

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ml_core.data.extra_inputs import ExtraInputs
from ml_core.data.fraud_features import FEATURES
from ml_core.distill.features import Features
from ml_core.models.fraud_student import FraudStudent, FraudStudentConfig
from ml_core.train.fraud_data import Samples

SHARP = ("amount", "ratio_median", "ratio_mean", "z_amount", "card_median", "second_ratio")
STAGES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeSettings:
    """LightGBM's settings; the features in SHARP get 4,095 bins, so that a rule such as "above 220" is not blurred.

    So do the further inputs of a schema.
    """

    trees: int = 300
    leaves: int = 63
    rate: float = 0.05
    min_leaf: int = 200
    rows: int = 3_000_000
    threads: int = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeOutputs:
    """Raw logits (n) and the leaf embedding (n, STAGES): sums of leaf values over consecutive groups of trees."""

    logits: npt.NDArray[np.float32]
    leaves: npt.NDArray[np.float32]


def fit_trees(samples: Samples, settings: TreeSettings, *, seed: int, extras: ExtraInputs | None = None) -> lgb.Booster:
    """Train on (at most `rows` of) the samples; `extras` says what stands behind the features."""
    rng = np.random.default_rng(seed)
    if len(samples) > settings.rows:
        samples = samples.take(np.sort(rng.choice(len(samples), settings.rows, replace=False)))
    more = () if extras is None else extras.names
    parameters = {
        "objective": "binary",
        "learning_rate": settings.rate,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": min(settings.min_leaf, max(5, len(samples) // 500)),
        "feature_fraction": 0.5,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "lambda_l2": 5.0,
        "max_bin": 4_095,
        "max_bin_by_feature": [4_095 if name in SHARP or name in more else 255 for name in (*FEATURES, *more)],
        "num_threads": settings.threads,
        "deterministic": True,
        "force_row_wise": True,
        "seed": seed,
        "verbose": -1,
    }
    data = lgb.Dataset(
        samples.features,
        samples.fraud,
        weight=samples.weight,
        feature_name=[*FEATURES, *more],
        categorical_feature=[] if extras is None else [each.key for each in extras.categories],
    )
    return lgb.train(parameters, data, settings.trees)


def tree_outputs(booster: lgb.Booster, features: npt.NDArray[np.float32], *, threads: int) -> TreeOutputs:
    """Logits and leaf embedding of rows."""
    per_stage = -(-booster.num_trees() // STAGES)
    leaves = np.zeros((len(features), STAGES), np.float32)
    for stage in range(STAGES):
        first = stage * per_stage
        count = min(per_stage, booster.num_trees() - first)
        if count > 0:
            leaves[:, stage] = booster.predict(
                features, raw_score=True, start_iteration=first, num_iteration=count, num_threads=threads
            )
    return TreeOutputs(logits=leaves.sum(1), leaves=leaves)


def teacher_features(
    *,
    tree_logits: Tensor,
    tree_leaves: Tensor,
    transformer: FraudStudent | None,
    inputs: tuple[Tensor, Tensor, Tensor],
    student: FraudStudentConfig,
) -> Features:
    """The ensemble as one teacher: mean logit; layers from the transformer, else the leaf embedding as one token.

    The transformer's tokens are cut to those that the student reads, so that token i meets token i.
    """
    leaves = tree_leaves.float()
    if transformer is None:
        return Features(layers=(leaves[:, None, :],), pooled=leaves, logits=tree_logits[:, None])
    with torch.no_grad():
        taps = transformer.taps(*inputs)
    first_terminal = 1 + transformer.config.card_tokens
    kept = [*range(1 + student.card_tokens), *range(first_terminal, first_terminal + student.terminal_tokens)]
    logits = 0.5 * (taps.logits.float() + tree_logits)
    return Features(
        layers=tuple(layer[:, kept].float() for layer in taps.layers),
        mask=taps.mask[:, kept],
        pooled=torch.cat([taps.pooled.float(), leaves], -1),
        logits=logits[:, None],
    )
