"""A teacher's features of all training rows, kept in memory: the real tokens of all rows behind one another."""

from collections.abc import Callable

import torch
from torch import Tensor

from ml_core.distill.features import Features
from ml_core.distill.tasks.task import Batch, Task
from ml_core.train.distill.model import token_tensors, with_tensors

_ROWS = 256
_MOST = {"cpu": 512 * 2**20, "cuda": 4_608 * 2**20}
_KEPT = {"cpu": torch.float32, "cuda": torch.bfloat16}  # on CUDA the teacher computes in bf16 anyway


class FeatureMemory:
    """Shows a teacher's features of training rows; they are computed at the first call and never again."""

    def __init__(self, live: Callable[[Batch], Features], *, task: Task) -> None:
        self._live, self._task = live, task
        self._device = task.train.labels.device
        self._dtype = _KEPT[self._device.type]
        self._filled = False

    @property
    def fits(self) -> bool:
        """Whether all rows take no more than what one process may keep, judged by the first few rows.

        False too where rows are padded and the task does not say by how much.
        """
        few = min(8, len(self._task.train))
        shown = self._live(self._batch(torch.arange(few)))
        if shown.mask is not None and "length" not in self._task.train.inputs:
            return False
        tokens, rows = token_tensors(shown)
        width = self._dtype.itemsize * sum(x.shape[-1] for x in tokens)
        per_row = self._dtype.itemsize * sum(x[0].numel() for x in rows)
        total = int(self._lengths(shown).sum())
        return total * width + len(self._task.train) * per_row <= _MOST[self._device.type]

    def __call__(self, batch: Batch) -> Features:
        """Features of the batch's `rows`, in single precision. Beyond a row's own tokens stand copies of its last."""
        if not self._filled:
            self._fill()
        rows, starts, lengths = batch["rows"], self._starts, self._row_lengths
        n = batch["mask"].shape[1] if self._masked else int(self._most)
        places = torch.minimum(torch.arange(n, device=rows.device)[None, :], lengths[rows][:, None] - 1)
        tokens = self._tokens[starts[rows][:, None] + places].float().split(self._widths, dim=-1)
        whole = [column[rows].float() for column in self._whole]
        return with_tensors(self._like, tokens=tokens, rows=whole, mask=batch["mask"] if self._masked else None)

    def _fill(self) -> None:
        order = torch.arange(len(self._task.train))
        whole: list[list[Tensor]] = []
        done = 0
        for rows in order.split(_ROWS):
            shown = self._live(self._batch(rows))
            by_token, by_row = token_tensors(shown)
            if not done:  # all at once: parts that are joined at the end would take twice the memory
                self._row_lengths = self._lengths(shown)
                self._widths = [x.shape[-1] for x in by_token]
                size = (int(self._row_lengths.sum()), sum(self._widths))
                self._tokens = torch.empty(size, dtype=self._dtype, device=self._device)
            part = torch.cat([x.to(self._dtype) for x in by_token], dim=-1)
            part = part.flatten(0, 1) if shown.mask is None else part[shown.mask]
            self._tokens[done : done + len(part)] = part
            done += len(part)
            whole.append([x.to(self._dtype) for x in by_row])
        self._like, self._masked = shown, shown.mask is not None
        self._most = by_token[0].shape[1]
        self._whole = [torch.cat(column) for column in zip(*whole, strict=True)]
        self._starts = self._row_lengths.cumsum(0) - self._row_lengths
        self._filled = True

    def _lengths(self, shown: Features) -> Tensor:
        split = self._task.train
        if "length" in split.inputs:
            return split.inputs["length"].long()
        n = shown.layers[0].shape[1]
        return torch.full((len(split),), n, device=self._device)

    def _batch(self, rows: Tensor) -> Batch:
        return self._task.prepare(self._task.train.batch(rows))
