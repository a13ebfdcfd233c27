"""Whole long documents against their first 512 and 4,096 tokens, by a small encoder of segmented attention.

Film reviews (median 802, longest 3,253 word pieces) and contracts of CUAD (median 6,600, longest 78,593); beside it
words counted, and chance.

Reviews: accuracy on `dev`. Contracts: mean average precision over the yes/no questions that `dev` answers with yes at
least once; guessing at random has the share of yes. Words are tokens, the vocabulary is that of `train`; settings are
fixed, `dev` chooses nothing. Needs the shared data; meant for a GPU, `--quick` tries it on a CPU.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from testkit.shared import SHARED
from torch import Tensor, nn
from torch.nn import functional

from ml_core.evals.bench import meta, row
from ml_core.layers.segments import SegmentedBlock

LENGTHS = {"512": 512, "4k": 4_096, "whole": 1 << 20}
_PAD, _OTHER = 0, 1
_WORD = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The encoder and its training; `budget`: tokens of a step."""

    d: int = 128
    h: int = 4
    layers: int = 2
    segment: int = 128
    vocabulary: int = 12_000
    epochs: int = 20
    budget: int = 32_768
    rate: float = 1e-3
    dropped: float = 0.2


@dataclass(frozen=True, kw_only=True)
class Task:
    """Texts and answers (texts c), 0 or 1, of both splits."""

    name: str
    texts: dict[str, list[str]]
    answers: dict[str, np.ndarray]


class Encoder(nn.Module):
    """Segmented attention in both directions over words, their mean, one logit an answer."""

    def __init__(self, settings: Settings, *, answers: int) -> None:
        super().__init__()
        self.dropped = settings.dropped
        self.embedding = nn.Embedding(settings.vocabulary, settings.d, padding_idx=_PAD)
        self.blocks = nn.ModuleList(
            SegmentedBlock(settings.d, settings.h, 2 * settings.d, segment=settings.segment, causal=False)
            for _ in range(settings.layers)
        )
        self.norm, self.head = nn.LayerNorm(settings.d), nn.Linear(settings.d, answers)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (b c) of word numbers (b n); in training some words are hidden."""
        real = ids != _PAD
        if self.training:
            ids = ids.masked_fill(torch.rand(ids.shape, device=ids.device) < self.dropped, _OTHER)
        x = functional.dropout(self.embedding(ids), self.dropped, self.training)
        for block in self.blocks:
            x = block(x, key_mask=real)
        x = self.norm(x).masked_fill(~real[..., None], 0.0).sum(1) / real.sum(1, keepdim=True)
        return self.head(functional.dropout(x, self.dropped, self.training))


def main() -> int:
    """Train, measure, write the result file, print it as one line of JSON."""
    parser = argparse.ArgumentParser(prog="long-documents")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "text", help="movie_reviews/ and cuad/")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tasks", nargs="+", default=["movie_reviews", "cuad"])
    parser.add_argument("--lengths", nargs="+", default=list(LENGTHS), choices=list(LENGTHS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="60 texts, one epoch")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not args.data.is_dir():
        raise SystemExit(f"no texts at {args.data}")
    settings = replace(Settings(), epochs=1) if args.quick else Settings()
    rows = []
    for name in args.tasks:
        task = _task(args.data / name, most=60 if args.quick else None)
        for length in args.lengths:
            rows += _rows(task, length, settings=settings, args=args)
    result = {"meta": meta("long-documents", packages=("torch", "scikit-learn")), "rows": rows}
    result["meta"]["device"] = torch.cuda.get_device_name() if args.device != "cpu" else "cpu"
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


def _rows(task: Task, length: str, *, settings: Settings, args: argparse.Namespace) -> list[dict[str, Any]]:
    case, metric = f"long/{task.name}/{length}", _metric(task)
    words = {split: [_words(text)[: LENGTHS[length]] for text in texts] for split, texts in task.texts.items()}
    found = [_trained(task, words, settings=settings, seed=seed, device=args.device) for seed in range(args.seeds)]
    yes = task.answers["dev"][:, _asked(task)].mean()
    chance = max(yes, 1 - yes) if metric == "accuracy" else yes
    given: dict[str, Any] = {"metric": metric, "unit": "share"}
    return [
        row(case, system="assay", values=found, **given),
        row(case, system="words_counted", values=[_counted(task, words)], **given),
        row(case, system="chance", values=[float(chance)], **given),
    ]


def _task(folder: Path, *, most: int | None) -> Task:
    tables = {split: pq.read_table(folder / f"{split}.parquet").slice(0, most) for split in ("train", "dev")}
    texts = {split: table["text"].to_pylist() for split, table in tables.items()}
    columns = ["label"] if "label" in tables["dev"].column_names else tables["dev"].column_names[2:]
    answers = {
        split: np.stack([np.asarray(table[name].to_pylist(), dtype=np.int64) for name in columns], 1)
        for split, table in tables.items()
    }
    return Task(name=folder.name, texts=texts, answers=answers)


def _trained(task: Task, words: dict[str, list[list[str]]], *, settings: Settings, seed: int, device: str) -> float:
    torch.manual_seed(seed)
    index = _vocabulary(words["train"], most=settings.vocabulary)
    ids = {split: [[index.get(word, _OTHER) for word in text] for text in texts] for split, texts in words.items()}
    model = Encoder(settings, answers=task.answers["train"].shape[1]).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=0.05)
    batches = _batches(ids["train"], budget=settings.budget)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.rate, total_steps=settings.epochs * len(batches)
    )  # fmt: skip
    wanted = torch.from_numpy(task.answers["train"]).float().to(device)
    for _ in range(settings.epochs):
        model.train()
        for place in torch.randperm(len(batches)).tolist():
            at = batches[place]
            loss = functional.binary_cross_entropy_with_logits(model(_padded(ids["train"], at, device)), wanted[at])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return _score(task, _said(model.eval(), ids["dev"], budget=settings.budget, device=device))


@torch.no_grad()
def _said(model: Encoder, ids: list[list[int]], *, budget: int, device: str) -> np.ndarray:
    said = torch.zeros(len(ids), model.head.out_features)
    for at in _batches(ids, budget=budget):
        said[at] = model(_padded(ids, at, device)).cpu()
    return said.numpy()


def _batches(ids: Sequence[Sequence[int]], *, budget: int) -> list[list[int]]:
    """Texts of like length together, as many as padded fit into the budget, at least one."""
    order = sorted(range(len(ids)), key=lambda at: len(ids[at]))
    batches: list[list[int]] = []
    for at in order:
        if not batches or (len(batches[-1]) + 1) * len(ids[at]) > budget:
            batches.append([])
        batches[-1].append(at)
    return batches


def _padded(ids: Sequence[Sequence[int]], at: Sequence[int], device: str) -> Tensor:
    longest = max(1, *(len(ids[each]) for each in at))
    rows = [[*ids[each], *[_PAD] * (longest - len(ids[each]))] or [_OTHER] for each in at]
    return torch.tensor(rows, device=device)


def _counted(task: Task, words: dict[str, list[list[str]]]) -> float:
    """Word counts (tf-idf) and one logistic regression an answer."""
    counter = TfidfVectorizer(analyzer=lambda text: text, sublinear_tf=True, min_df=2)
    train, dev = counter.fit_transform(words["train"]), counter.transform(words["dev"])
    said = np.zeros(task.answers["dev"].shape)
    for answer in range(said.shape[1]):
        wanted = task.answers["train"][:, answer]
        if 0 < wanted.sum() < len(wanted):
            model = LogisticRegression(C=10.0, max_iter=1000).fit(train, wanted)
            said[:, answer] = model.decision_function(dev)
    return _score(task, said)


def _score(task: Task, said: np.ndarray) -> float:
    wanted = task.answers["dev"]
    if _metric(task) == "accuracy":
        return float(((said[:, 0] > 0) == wanted[:, 0]).mean())
    return float(np.mean([average_precision_score(wanted[:, at], said[:, at]) for at in _asked(task)]))


def _metric(task: Task) -> str:
    return "accuracy" if task.answers["dev"].shape[1] == 1 else "macro_average_precision"


def _asked(task: Task) -> list[int]:
    """The answers that `dev` has at least once."""
    return [at for at in range(task.answers["dev"].shape[1]) if task.answers["dev"][:, at].any()]


def _vocabulary(texts: list[list[str]], *, most: int) -> dict[str, int]:
    counts = Counter(word for text in texts for word in text)
    return {word: number + 2 for number, (word, _) in enumerate(counts.most_common(most - 2))}


def _words(text: str) -> list[str]:
    return list(_found(text.lower()))


def _found(text: str) -> Iterator[str]:
    return (match[0] for match in _WORD.finditer(text))
