"""Metrics that take a count an example, so that a bootstrap resamples by counts and nothing is sorted twice."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Metric = Callable[[Array, Array], Callable[[Array], float]]  # (outputs, labels) → (weights of examples) → value


def accuracy(outputs: Array, labels: Array) -> Callable[[Array], float]:
    """Share of examples whose largest logit is their class; outputs (n c), labels (n)."""
    right = (outputs.argmax(1) == labels).astype(np.float64)
    return lambda weight: float(right @ weight / weight.sum())


def accuracy_except(left_out: int) -> Metric:
    """Accuracy on the examples that are not of the class `left_out` (scope questions: in-scope accuracy)."""

    def metric(outputs: Array, labels: Array) -> Callable[[Array], float]:
        right = (outputs.argmax(1) == labels).astype(np.float64)
        kept = (labels != left_out).astype(np.float64)
        return lambda weight: _ratio(float((right * kept) @ weight), float(kept @ weight))

    return metric


def recall_of(label: int) -> Metric:
    """Share of the examples of the class `label` that are called so."""

    def metric(outputs: Array, labels: Array) -> Callable[[Array], float]:
        there = (labels == label).astype(np.float64)
        found = there * (outputs.argmax(1) == label)
        return lambda weight: _ratio(float(found @ weight), float(there @ weight))

    return metric


def f1(outputs: Array, labels: Array) -> Callable[[Array], float]:
    """F1 of class 1 of two."""
    said = outputs.argmax(1) == 1
    both, either = (said & (labels == 1)).astype(float), said.astype(float) + (labels == 1)
    return lambda weight: _ratio(2.0 * float(both @ weight), float(either @ weight))


def matthews(outputs: Array, labels: Array) -> Callable[[Array], float]:
    """Matthews correlation of two classes."""
    said = outputs.argmax(1)
    cells = [((said == s) & (labels == t)).astype(float) for s in (0, 1) for t in (0, 1)]

    def value(weight: Array) -> float:
        tn, fn, fp, tp = (float(cell @ weight) for cell in cells)
        return _ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))

    return value


def average_precision(outputs: Array, labels: Array) -> Callable[[Array], float]:
    """Area under precision and recall as scikit-learn defines it; outputs (n 1). Equal scores stand together."""
    return _ranked(outputs[:, 0], labels, _average_precision)


def auc(outputs: Array, labels: Array) -> Callable[[Array], float]:
    """Area under the ROC curve; outputs (n 1). Equal scores count half."""
    return _ranked(outputs[:, 0], labels, _auc)


def macro_auc(*, least: int = 10) -> Metric:
    """Mean AUC of the findings with at least so many known positives and negatives; outputs (n f), labels (n f)."""

    def metric(outputs: Array, labels: Array) -> Callable[[Array], float]:
        parts = []
        for finding in range(labels.shape[1]):
            known = labels[:, finding] >= 0
            positives = int((labels[known, finding] == 1).sum())
            if min(positives, int(known.sum()) - positives) >= least:
                parts.append((known, _ranked(outputs[known, finding], labels[known, finding], _auc)))
        return lambda weight: float(np.mean([part(weight[known]) for known, part in parts])) if parts else float("nan")

    return metric


def _ranked(scores: Array, labels: Array, area: Callable[[Array, Array, Array], float]) -> Callable[[Array], float]:
    order = np.argsort(-scores, kind="stable")
    positive = (labels[order] == 1).astype(np.float64)
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)

    def value(weight: Array) -> float:
        ordered = weight[order]
        true, false = np.cumsum(ordered * positive)[ends], np.cumsum(ordered * (1.0 - positive))[ends]
        return area(true, false, ordered)

    return value


def _average_precision(true: Array, false: Array, _: Array) -> float:
    precision = true / np.maximum(true + false, 1e-300)
    return _ratio(float(np.diff(true, prepend=0.0) @ precision), float(true[-1]))


def _auc(true: Array, false: Array, _: Array) -> float:
    steps = np.diff(false, prepend=0.0)
    area = float(steps @ (true - 0.5 * np.diff(true, prepend=0.0)))
    return _ratio(area, float(true[-1] * false[-1]))


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom else 0.0
