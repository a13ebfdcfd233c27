"""Unlabelled text for general distillation: every training text of a folder of data sets, without any label."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from ml_core.distill.tasks.metrics import accuracy
from ml_core.distill.tasks.task import Split, Task
from ml_core.distill.tasks.text import encoded, trimmed
from ml_core.errors import InputError
from ml_core.models.transformers_shim import transformers_import

LEFT_OUT = ("movie_reviews",)  # reviews of films: too near to SST-2's sentences to be read before it is measured
_COLUMNS = (("text",), ("text_a", "text_b"))
_CHECKED = 64


def general_task(data: Path, *, tokenizer: Path, most: int = 0) -> Task:
    """Texts and pairs of DATA/*/train.parquet, each once; none that stands in a dev.parquet. `most` > 0: so many.

    Labels are zeros and mean nothing. Raises InputError where there is no text.
    """
    tokens = transformers_import().AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    folders = sorted(path.parent for path in data.glob("*/train.parquet") if path.parent.name not in LEFT_OUT)
    held = {row for folder in data.iterdir() for row in _rows(folder / "dev.parquet")}
    rows = list(dict.fromkeys(row for folder in folders for row in _rows(folder / "train.parquet") if row not in held))
    rows = sorted(rows, key=_drawn)[: most or None]
    parts = [_encoded([row for row in rows if len(row) == n], tokens=tokens) for n in (1, 2)]
    split = _joined([part for part in parts if len(part)], pad=int(tokens.pad_token_id))
    few = Split(inputs={name: value[:_CHECKED] for name, value in split.inputs.items()}, labels=split.labels[:_CHECKED])
    return Task(
        name="general",
        kind="classes",
        classes=1,
        train=split,
        dev=few,
        test=few,
        metrics={"accuracy": accuracy},
        prepare=trimmed,
    )


def _rows(path: Path) -> list[tuple[str, ...]]:
    from pyarrow import parquet

    if not path.exists():
        return []
    names = parquet.read_schema(path).names
    columns = next((list(some) for some in _COLUMNS if set(some) <= set(names)), None)
    if columns is None:
        return []
    table = parquet.read_table(path, columns=columns).to_pydict()
    return [tuple(str(text) for text in row) for row in zip(*(table[column] for column in columns), strict=True)]


def _drawn(row: tuple[str, ...]) -> bytes:
    return hashlib.sha256("\n".join(row).encode()).digest()


def _encoded(rows: Sequence[tuple[str, ...]], *, tokens: Any) -> Split:
    if not rows:
        return Split(inputs={}, labels=torch.zeros(0, dtype=torch.int64))
    texts = [list(part) for part in zip(*rows, strict=True)]
    return encoded(texts, labels=torch.zeros(len(rows), dtype=torch.int64), tokens=tokens)


def _joined(parts: Sequence[Split], *, pad: int) -> Split:
    if not parts:
        raise InputError("text_data: holds no text to learn from")
    width = max(part.inputs["ids"].shape[1] for part in parts)
    ids = [functional.pad(p.inputs["ids"], (0, width - p.inputs["ids"].shape[1]), value=pad) for p in parts]
    first = parts[0]
    inputs = {"ids": torch.cat(ids), "length": torch.cat([part.inputs["length"] for part in parts])}
    return replace(first, inputs=inputs, labels=torch.cat([part.labels for part in parts]))
