"""Text classification from parquet files: a pretrained encoder fine-tuned a task, and four smaller students of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ml_core.distill.features import Features
from ml_core.distill.tasks import text_models, text_transfer
from ml_core.distill.tasks.metrics import Metric, accuracy, accuracy_except, f1, matthews, recall_of
from ml_core.distill.tasks.task import Batch, Case, Fit, Learner, Split, Task
from ml_core.errors import InputError
from ml_core.models.transformers_shim import transformers_import
from ml_core.seed import numpy_generator

FAMILY = "text"
TOKENS = 128
_GRID = 16  # few widths: each is one CUDA graph
_DEV_SHARE, _DEV_MOST = 0.1, 1_000
_OOS = "oos"


@dataclass(frozen=True, kw_only=True)
class TextSet:
    """One data set: how many epochs student and teacher learn it in which batches, and what is measured first.

    base: the set that is read, where the name is another. Students then read texts of the sets `texts` beside, and each
    own text `corrupted` times with a word changed: rows without a label, on which the teacher alone says what is right.
    """

    epochs: int
    teacher_epochs: int
    batch: int = 64
    metrics: tuple[str, ...] = ("accuracy",)
    base: str = ""
    texts: tuple[str, ...] = ()
    corrupted: int = 0


# epochs so that students get 500 to 2,000 steps
SETS: dict[str, TextSet] = {
    "sst2": TextSet(epochs=2, teacher_epochs=2, batch=128),
    "mrpc": TextSet(epochs=10, teacher_epochs=5, batch=32, metrics=("f1", "accuracy")),
    "rte": TextSet(epochs=10, teacher_epochs=8, batch=32),
    "cola": TextSet(epochs=6, teacher_epochs=4, batch=32, metrics=("matthews", "accuracy")),
    "banking77": TextSet(epochs=12, teacher_epochs=8),
    "ag_news": TextSet(epochs=6, teacher_epochs=3),
    "snli": TextSet(epochs=5, teacher_epochs=3),  # where settings are chosen
    "clinc150": TextSet(epochs=6, teacher_epochs=6, metrics=("in-scope accuracy", "out-of-scope recall", "accuracy")),
    "mrpc+pairs": TextSet(
        epochs=4, teacher_epochs=5, batch=32, metrics=("f1", "accuracy"), base="mrpc", texts=("qqp", "stsb")
    ),
    "rte+pairs": TextSet(epochs=3, teacher_epochs=8, batch=32, base="rte", texts=("snli", "mnli", "qnli")),
    "cola+corrupted": TextSet(
        epochs=3, teacher_epochs=4, batch=32, metrics=("matthews", "accuracy"), base="cola", corrupted=3
    ),
}


def cases(
    data: Path, *, teacher: Path, student: Path | None = None, general: Path | None = None, quick: bool = False
) -> list[Case]:
    """teacher > each student / each data set that the folder holds.

    student: start of the 6 x 384 one; general: folder of the starts that general distillation gave the others.
    """
    starts = text_models.Starts(teacher=teacher, student=student, general=general)
    name = "mpnet" if "mpnet" in text_models.model_type(teacher) else text_models.model_type(teacher)
    found = [task for task in SETS if all((data / name / "train.parquet").exists() for name in _read_of(task))]
    if not found:
        raise InputError(f"{data}: holds none of {', '.join(SETS)} as TASK/train.parquet")
    made = []
    for task in found:
        fit = Fit(epochs=1 if quick else SETS[task].teacher_epochs, batch=SETS[task].batch, lr=5e-5)
        taught_by = Learner(
            name=name,
            start=f"pretrained ({teacher.name})",
            build=partial(_built, text_models.teacher, teacher),
            show=show,
            fit=fit,
        )
        load = partial(text_task, data, name=task, tokenizer=teacher, most=200 if quick else 0)
        for learner in _students(task, starts=starts, quick=quick):
            heads = text_models.relation_heads(teacher, learner.name)
            made.append(
                Case(family=FAMILY, task=task, teacher=taught_by, student=learner, load=load, relation_heads=heads)
            )
    return made


@cache
def text_task(data: Path, *, name: str, tokenizer: Path, most: int = 0) -> Task:
    """The data set as token ids of the teacher's tokenizer.

    DATA/name/{train,dev}.parquet have text (or text_a, text_b) and label. The file's dev is the test split; our dev is
    a tenth of train, at most 1,000, drawn once. `most` > 0: only so many rows a split. Rows of train without a label
    (TextSet.texts, TextSet.corrupted) have weight 0.
    """
    tokens = transformers_import().AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    base = SETS[name].base or name
    train, test = (_read(data / base / f"{part}.parquet", most=most) for part in ("train", "dev"))
    order = numpy_generator(0, "text", base, "dev").permutation(len(train.labels))
    held = min(_DEV_MOST, max(1, int(_DEV_SHARE * len(order))))
    parts = [train.take(np.sort(order[held:])), train.take(np.sort(order[:held])), test]
    extra = _unlabelled(data, name=name, own=parts[0].texts, held=[*parts[1].texts, *test.texts], most=most)
    weight = torch.ones(len(parts[0].labels) + len(extra))
    weight[len(parts[0].labels) :] = 0.0
    parts[0] = parts[0].beside(extra)
    splits = [_split(part, tokens=tokens) for part in parts]
    if extra:
        splits[0] = replace(splits[0], weight=weight)
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    return Task(
        name=name,
        kind="classes",
        classes=classes,
        train=splits[0],
        dev=splits[1],
        test=splits[2],
        metrics={metric: _metric(metric, names=train.names) for metric in SETS[name].metrics},
        prepare=trimmed,
    )


def trimmed(batch: Batch) -> Batch:
    """Columns that are padding in every row go, down to a multiple of 16; `mask` is made of the lengths."""
    n = min(batch["ids"].shape[1], -(-int(batch["length"].max()) // _GRID) * _GRID)
    places = torch.arange(n, device=batch["length"].device)
    return batch | {"ids": batch["ids"][:, :n].long(), "mask": places[None, :] < batch["length"][:, None]}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    texts: list[tuple[str, ...]]
    labels: np.ndarray
    names: dict[int, str]

    def take(self, rows: np.ndarray) -> "_Rows":
        return replace(self, texts=[self.texts[row] for row in rows], labels=self.labels[rows])

    def beside(self, texts: Sequence[tuple[str, ...]]) -> "_Rows":
        """And texts without a label: theirs is 0 and means nothing."""
        labels = np.concatenate([self.labels, np.zeros(len(texts), dtype=np.int64)])
        return replace(self, texts=[*self.texts, *texts], labels=labels)


def _read_of(task: str) -> tuple[str, ...]:
    """The folders that a set is read from."""
    return (SETS[task].base or task, *SETS[task].texts)


def _unlabelled(
    data: Path, *, name: str, own: Sequence[tuple[str, ...]], held: Sequence[tuple[str, ...]], most: int
) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for other in SETS[name].texts:
        found += _read(data / other / "train.parquet", most=most, labelled=False).texts
    if SETS[name].corrupted:
        rng = numpy_generator(0, "text", name, "corrupted")
        found += text_transfer.corrupted(own, times=SETS[name].corrupted, rng=rng)
    return text_transfer.unseen(found, held=[*own, *held])


def _read(path: Path, *, most: int, labelled: bool = True) -> _Rows:
    from pyarrow import parquet

    if not path.exists():
        raise InputError(f"{path} does not exist")
    table = parquet.read_table(path).to_pydict()
    columns = ["text"] if "text" in table else ["text_a", "text_b"]
    if not labelled:
        table["label"] = [0] * len(table.get(columns[0], ()))
    if missing := [name for name in (*columns, "label") if name not in table]:
        raise InputError(f"{path}: no column {', '.join(missing)}")
    labels = np.asarray(table["label"], dtype=np.int64)
    named = table.get("label_name", [])
    # the same rows in every run; the files are sorted by source, so the first ones would not do
    kept = numpy_generator(0, "text", "most").permutation(len(labels))[: most or None]
    kept = np.sort(kept)
    return _Rows(
        texts=[tuple(str(table[column][row]) for column in columns) for row in kept],
        labels=labels[kept],
        names=dict(zip(labels.tolist(), named, strict=False)),
    )


def _split(rows: _Rows, *, tokens: Any) -> Split:
    texts = [list(part) for part in zip(*rows.texts, strict=True)]
    return encoded(texts, labels=torch.from_numpy(rows.labels), tokens=tokens)


def encoded(texts: Sequence[list[str]], *, labels: Tensor, tokens: Any) -> Split:
    """Texts, or pairs of texts as two lists, as padded ids of a transformers tokenizer, at most TOKENS each."""
    ids = tokens(*texts, truncation=True, max_length=TOKENS)["input_ids"]
    length = torch.tensor([len(row) for row in ids])
    padded = torch.full((len(ids), int(length.max())), int(tokens.pad_token_id), dtype=torch.int32)
    for index, row in enumerate(ids):
        padded[index, : len(row)] = torch.tensor(row, dtype=torch.int32)
    return Split(inputs={"ids": padded, "length": length}, labels=labels)


def _metric(name: str, *, names: dict[int, str]) -> Metric:
    if name in {"in-scope accuracy", "out-of-scope recall"}:
        out = next((label for label, word in names.items() if word == _OOS), None)
        if out is None:
            raise InputError(f"label_name: {_OOS!r} is needed for {name}")
        return accuracy_except(out) if name == "in-scope accuracy" else recall_of(out)
    return {"accuracy": accuracy, "f1": f1, "matthews": matthews}[name]


def _students(task: str, *, starts: text_models.Starts, quick: bool) -> Sequence[Learner]:
    made = []
    for name in text_models.STUDENTS:
        epochs = 1 if quick else SETS[task].epochs
        fit = Fit(epochs=epochs, batch=SETS[task].batch, lr=text_models.rate(name, starts=starts))
        build = partial(_student, name, starts)
        start = text_models.start(name, starts=starts)
        made.append(Learner(name=name, start=start, build=build, show=show, fit=fit))
    return made


def _built(make: Callable[..., nn.Module], folder: Path, task: Task) -> nn.Module:
    return make(folder, classes=task.classes)


def _student(name: str, starts: text_models.Starts, task: Task) -> nn.Module:
    return text_models.student(name, starts=starts, classes=task.classes)


def show(model: nn.Module, batch: Batch) -> Features:
    """Features of a prepared batch by a TextClassifier."""
    return model(batch["ids"], batch["mask"])
