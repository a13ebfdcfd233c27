"""A student taught by a teacher, by a cache, by none: the loop's loss."""

import torch
from torch import nn
from torch.nn import functional

from ml_core.distill import presets
from ml_core.distill.cache import TeacherCache
from ml_core.distill.cost import Meter
from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.features import Features
from ml_core.distill.objectives import taught


class Tower(nn.Module):
    """Tokens in, Features out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x):
        first = torch.tanh(self.first(x))
        second = torch.tanh(self.second(first))
        return Features(layers=(first, second), pooled=second.mean(1), logits=self.head(second.mean(1)))


X = torch.randn(12, 4, 6, generator=torch.Generator().manual_seed(0))
BATCH = (X, torch.arange(12) % 3, torch.arange(12))


def show(model, batch):
    return model(batch[0])


def task(shown, batch):
    return functional.cross_entropy(shown.logits, batch[1])


def test_the_teacher_runs_without_gradient_and_the_meter_measures():
    torch.manual_seed(0)
    student, teacher, meter = Tower(8), Tower(16), Meter()
    loss = taught(
        DFAD(DFADConfig(), (16, 16), (8, 8)), teacher=lambda b: teacher(b[0]), show=show, task=task, meter=meter
    )
    loss(student, BATCH, 0.0).total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())
    assert meter.read() > 0
    assert meter.read() == 0


def test_a_cache_teaches_what_the_teacher_would(tmp_path):
    torch.manual_seed(0)
    student, teacher = Tower(8), Tower(16)
    cache = TeacherCache(tmp_path, teacher="t", data="d", examples=12, shard_rows=5)
    cache.fill(lambda rows: teacher(X[list(rows)]))
    dfad = DFAD(DFADConfig(), (16, 16), (8, 8)).eval()
    live = taught(dfad, teacher=lambda b: teacher(b[0]), show=show, task=task)(student, BATCH, 0.0)
    cached = taught(dfad, teacher=lambda b: cache.read(b[2].tolist()), show=show, task=task)(student, BATCH, 0.0)
    assert abs(float(live.total.detach()) - float(cached.total.detach())) < 2e-3


def test_without_a_teacher_the_task_is_the_whole_loss():
    student = Tower(8)
    loss = taught(DFAD(presets.ce_only(), (16, 16), (8, 8)), teacher=None, show=show, task=task)(student, BATCH, 0.0)
    assert torch.equal(loss.total, loss.task)


def test_an_alignment_of_tokens_comes_with_the_batch():
    torch.manual_seed(0)
    student, teacher = Tower(8), Tower(16)
    reversed_order = torch.eye(4).flip(0).expand(12, 4, 4)
    dfad = DFAD(DFADConfig(levels=("token",)), (16, 16), (8, 8)).eval()
    flipped = taught(
        dfad, teacher=lambda b: teacher(b[0].flip(1)), show=show, task=task, alignment=lambda b: reversed_order
    )(student, BATCH, 0.0)
    plain = taught(dfad, teacher=lambda b: teacher(b[0]), show=show, task=task)(student, BATCH, 0.0)
    assert torch.allclose(flipped.align_token, plain.align_token)
