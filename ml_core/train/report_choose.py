"""Decision rules of a report model, chosen on films that it did not learn from."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ml_core.data.findings import FINDINGS, NO_FINDING
from ml_core.train.report_films import labels_matrix, presence
from ml_core.train.report_gather import Films
from ml_core.train.report_scores import auc_mean, presence_predict

_LEAST_POSITIVES = 10  # a finding with no more real training examples is never asserted
_LEAST_HELD_OUT = 5
_LEAST_AUC = 0.65  # on the films held out; below, a finding is noise


def rules_choose(model: nn.Module, films: Films, *, device: str) -> dict[str, Any]:
    """Decision rules. `thresholds`: findings that may be asserted, from the labelled films held out, at the best F1.

    `hedges`: findings without enough real examples, which may only be raised as uncertain, at a level that at most 3 %
    of the held-out films pass. Without labelled films both are chosen on simulated ones, and `basis` says so.
    `simulated`: thresholds of every finding for films of our simulator, at the best F1 on simulated ones.
    """
    real = films.held_out_films is not None
    basis = films.held_out_films if real else films.simulated_check
    truth = labels_matrix(films.held_out) if real else presence(basis)
    scores = presence_predict(model, basis.images, device=device)
    check = films.simulated_check
    simulated = presence_predict(model, check.images, device=device) if real else scores
    aucs = auc_mean(truth, scores)
    thresholds, hedges = {}, {}
    for index, name in enumerate(FINDINGS):
        enough = films.positives[name] > _LEAST_POSITIVES if real else True
        if enough and truth[:, index].sum() >= _LEAST_HELD_OUT and aucs.get(name, 0.0) >= _LEAST_AUC:
            thresholds[name] = best_threshold(truth[:, index], scores[:, index])
        elif name != NO_FINDING:
            hedges[name] = float(max(0.5, np.quantile(scores[:, index], 0.97)))
    return {
        "thresholds": thresholds,
        "hedges": hedges,
        "simulated": _simulated(presence(check), simulated),
        "gate": 0.9 if real else 0.5,
        "basis": "real" if real else "simulated",
        "positives": films.positives,
        "auc": aucs,
    }


def _simulated(truth: NDArray[np.float32], scores: NDArray[np.float32]) -> dict[str, float]:
    aucs = auc_mean(truth, scores, least=_LEAST_POSITIVES)
    return {
        name: best_threshold(truth[:, index], scores[:, index])
        for index, name in enumerate(FINDINGS)
        if name != NO_FINDING and aucs.get(name, 0.0) >= _LEAST_AUC
    }


def best_threshold(truth: NDArray[np.float32], scores: NDArray[np.float32]) -> float:
    """The threshold with the best F1, half-way between neighbouring scores; F1 is smoothed by two invented films."""
    order = np.argsort(-scores)
    hits = np.cumsum(truth[order])
    stated = np.arange(1, len(order) + 1)
    f1 = 2 * hits / (stated + truth.sum() + 2)
    best = int(np.argmax(f1))
    below = scores[order[best + 1]] if best + 1 < len(order) else 0.0
    return float((scores[order[best]] + below) / 2)
