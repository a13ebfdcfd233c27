"""Gradient-boosted trees as teachers: LightGBM and XGBoost show logits, and their leaf embedding as one token."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from ml_core.distill.features import Features
from ml_core.errors import InputError

Rows = npt.NDArray[np.floating[Any]]


class TreeTaps:
    """A booster that returns Features.

    The leaf embedding holds, for each of `stages` consecutive groups of trees (and each class), the sum of the leaf
    values that the row falls into; their sum over stages is the logit, so a linear head on the embedding is the whole
    ensemble. Binary and multi-class objectives.
    """

    def __init__(self, booster: Any, *, stages: int = 32, threads: int = 1) -> None:
        self.booster, self.threads = booster, threads
        self.kind = type(booster).__module__.split(".")[0]
        if self.kind not in {"lightgbm", "xgboost"}:
            raise InputError(f"booster: {type(booster)} is neither LightGBM's nor XGBoost's")
        rounds = booster.current_iteration() if self.kind == "lightgbm" else booster.num_boosted_rounds()
        self.stages = [
            (int(part[0]), int(part[-1]) + 1) for part in np.array_split(np.arange(rounds), stages) if len(part)
        ]
        if not self.stages:
            raise InputError("booster: holds no trees")

    def __call__(self, rows: Rows | Float[Tensor, "b f"], *, device: torch.device | str = "cpu") -> Features:
        """Features of b rows: one layer of one token (b, 1, stages·c), pooled the same, logits (b, c)."""
        x = rows.detach().cpu().numpy() if isinstance(rows, Tensor) else rows
        parts = self._lightgbm(x) if self.kind == "lightgbm" else self._xgboost(x)
        values = torch.from_numpy(np.stack(parts, 1).astype(np.float32)).to(device)
        leaves = values.flatten(1)
        return Features(layers=(leaves[:, None],), pooled=leaves, logits=values.sum(1), names=("leaves",))

    @property
    def width(self) -> int:
        """Width of the leaf embedding."""
        classes = self.booster.num_model_per_iteration() if self.kind == "lightgbm" else self._xgboost_classes()
        return len(self.stages) * classes

    def _lightgbm(self, x: Rows) -> list[Rows]:
        return [
            _two(
                self.booster.predict(
                    x, raw_score=True, start_iteration=first, num_iteration=last - first, num_threads=self.threads
                )
            )
            for first, last in self.stages
        ]

    def _xgboost(self, x: Rows) -> list[Rows]:
        xgboost = importlib.import_module("xgboost")
        matrix = xgboost.DMatrix(x, nthread=self.threads)

        def margin(first: int, last: int) -> Rows:
            return _two(self.booster.predict(matrix, output_margin=True, iteration_range=(first, last)))

        parts = [margin(first, last) for first, last in self.stages]
        if len(parts) > 1:
            # every margin holds the base score once: it stays in the first stage alone
            a, b = self.stages[0], self.stages[1]
            base = parts[0] + parts[1] - margin(a[0], b[1])
            parts[1:] = [part - base for part in parts[1:]]
        return parts

    def _xgboost_classes(self) -> int:
        return len(self.booster.get_dump()) // self.booster.num_boosted_rounds()


def trees_load(path: Path | str, *, stages: int = 32, threads: int = 1) -> TreeTaps:
    """From a file: LightGBM's text model (.txt) or XGBoost's (.json, .ubj). Raises InputError for any other."""
    file = Path(path)
    if file.suffix == ".txt":
        booster = importlib.import_module("lightgbm").Booster(model_file=str(file))
    elif file.suffix in {".json", ".ubj"}:
        booster = importlib.import_module("xgboost").Booster(model_file=str(file))
    else:
        raise InputError(f"{file}: trees are read from .txt (LightGBM), .json or .ubj (XGBoost)")
    return TreeTaps(booster, stages=stages, threads=threads)


def _two(values: Rows) -> Rows:
    return values[:, None] if values.ndim == 1 else values
