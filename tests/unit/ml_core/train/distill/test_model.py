"""The batches of one training: each row once an epoch, and rows of like length together where that is asked for."""

import torch
from torch import nn

from ml_core.distill.tasks.metrics import accuracy
from ml_core.distill.tasks.task import Fit, Split, Task
from ml_core.train.distill.model import model_train

ROWS, SIZE = 24, 4


def batches_seen(tmp_path, *, by_length, seed=0):
    lengths = torch.arange(ROWS) * 5 % ROWS
    split = Split(inputs={"x": torch.randn(ROWS, 3), "length": lengths}, labels=torch.zeros(ROWS, dtype=torch.int64))
    seen = []

    def prepare(batch):
        seen.append(batch["rows"].tolist())
        return batch

    task = Task(
        name="lengths", kind="classes", classes=2, train=split, dev=split, test=split,
        metrics={"accuracy": accuracy}, prepare=prepare,
    )  # fmt: skip
    model_train(
        nn.Linear(3, 2), task=task, fit=Fit(epochs=2, batch=SIZE, lr=1e-3), seed=seed,
        loss=lambda model, batch, progress: model(batch["x"]).square().mean(), folder=tmp_path, log=None,
        by_length=by_length,
    )  # fmt: skip
    assert all(sorted(sum(epoch, [])) == list(range(ROWS)) for epoch in (seen[: ROWS // SIZE], seen[ROWS // SIZE :]))
    return lengths, seen


def test_rows_of_like_length_share_a_batch_and_the_batches_come_in_another_order_each_epoch(tmp_path):
    lengths, seen = batches_seen(tmp_path, by_length=True)
    assert all(sorted(lengths[rows].tolist()) == list(range(first, first + SIZE))
               for rows in seen for first in [int(lengths[rows].min())])  # fmt: skip
    half = len(seen) // 2
    assert [sorted(rows) for rows in seen[:half]] != [sorted(rows) for rows in seen[half:]]


def test_without_it_lengths_mix(tmp_path):
    lengths, seen = batches_seen(tmp_path, by_length=False)
    assert any(int(lengths[rows].max() - lengths[rows].min()) >= SIZE for rows in seen)
