"""A student without a teacher: its running average, its deepest layer, itself before augmentation."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.features import Features
from ml_core.distill.objectives import self_taught, taught_by_depth
from ml_core.distill.selfteach import DeeperToShallower, EMATeacher, add_noise, mask_tokens
from ml_core.errors import InputError
from ml_core.events import EventLog
from ml_core.train.checkpoint import LoopConfig
from ml_core.train.loop import train


class Student(nn.Module):
    """Three layers, dropout, batch norm, three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)])
        self.norm, self.dropout, self.head = nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)

    def forward(self, x):
        shown = []
        for layer in self.layers:
            x = torch.tanh(layer(x))
            shown.append(x[:, None])
        pooled = self.dropout(self.norm(x))
        return Features(layers=tuple(shown), pooled=pooled, logits=self.head(pooled))


def rows(epoch, count=8):
    generator = torch.Generator().manual_seed(epoch)
    xs = torch.randn(count, 16, 6, generator=generator)
    return [(x, (x[:, 0] > 0).long() + (x[:, 1] > 1).long()) for x in xs]


def show(model, batch):
    return model(batch[0])


def task(shown, batch):
    return functional.cross_entropy(shown.logits, batch[1])


def noisy(batch):
    return add_noise(batch[0], sigma=0.3), batch[1]


def ways(student):
    """For each kind of self-distillation: criterion, loss, companions, what follows a step."""
    ema = EMATeacher(student, decay=0.9)
    start = EMATeacher(student, decay=1.0)
    plain, augmented = (DFAD(DFADConfig(warmup_steps=2), (8,) * 3, (8,) * 3) for _ in range(2))
    deeper = DeeperToShallower(DFADConfig(warmup_steps=2), widths=(8, 8, 8), pooled=8, classes=3)
    return {
        "ema": (
            plain,
            self_taught(plain, teacher=ema, show=show, task=task),
            {"ema": ema},
            lambda _: ema.follow(student),
        ),
        "augmented": (
            augmented,
            self_taught(augmented, teacher=start, show=show, task=task, augment=noisy),
            {"start": start},
            None,
        ),
        "deeper": (deeper, taught_by_depth(deeper, show=show, task=task), {}, None),
    }


def go(folder, *, kind, epochs=6, on_epoch=None):
    torch.manual_seed(3)
    student = Student()
    criterion, loss, companions, on_step = ways(student)[kind]
    with EventLog(folder) as log:
        train(
            student,
            config=LoopConfig(epochs=epochs, lr=1e-2, accumulation=2),
            batches=rows,
            batches_per_epoch=8,
            loss=loss,
            folder=folder,
            log=log,
            criterion=criterion,
            companions=companions,
            on_step=on_step,
            on_epoch=on_epoch,
        )
    states = [student.state_dict(), criterion.state_dict(), *(module.state_dict() for module in companions.values())]
    return student, [value for state in states for value in state.values()]


@pytest.mark.parametrize("kind", ["ema", "augmented", "deeper"])
def test_every_kind_learns_through_the_same_trainer(kind, tmp_path):
    batch = [torch.cat(parts) for parts in zip(*rows(99), strict=True)]
    torch.manual_seed(3)
    before = float(task(Student().eval()(batch[0]), batch).detach())
    student, _ = go(tmp_path, kind=kind, epochs=8)
    assert float(task(student.eval()(batch[0]), batch).detach()) < before - 0.1


@pytest.mark.parametrize("kind", ["ema", "augmented", "deeper"])
def test_cut_off_and_resumed_student_teacher_and_exits_have_the_same_bits(kind, tmp_path):
    def cut(epoch):
        raise KeyboardInterrupt

    _, whole = go(tmp_path / "whole", kind=kind, epochs=3)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", kind=kind, epochs=3, on_epoch=cut)
    _, resumed = go(tmp_path / "cut", kind=kind, epochs=3)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_the_average_follows_by_its_decay_buffers_included():
    torch.manual_seed(0)
    student = Student()
    teacher = EMATeacher(student, decay=0.75)
    before = teacher.model.head.weight.clone()
    with torch.no_grad():
        student.head.weight.add_(1.0)
        student.norm.running_mean.add_(4.0)
        student.norm.num_batches_tracked.add_(5)
    teacher.follow(student)
    assert torch.allclose(teacher.model.head.weight, before + 0.25)
    assert torch.allclose(teacher.model.norm.running_mean, torch.ones(8))
    assert int(teacher.model.norm.num_batches_tracked) == 5


def test_a_teacher_drops_nothing_out_and_takes_no_gradient():
    student = Student().train()
    teacher = EMATeacher(student).train()
    x = torch.randn(4, 6)
    assert torch.equal(teacher(x).logits, teacher(x).logits)
    assert teacher(x).logits.requires_grad is False
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_decay_of_one_keeps_the_start():
    student = Student()
    teacher = EMATeacher(student, decay=1.0)
    with torch.no_grad():
        student.head.weight.add_(1.0)
    teacher.follow(student)
    assert not torch.equal(teacher.model.head.weight, student.head.weight)
    with pytest.raises(InputError, match="decay"):
        EMATeacher(student, decay=1.5)


def test_the_deepest_layer_teaches_and_does_not_learn_from_the_others():
    torch.manual_seed(0)
    student = Student().eval()
    criterion = DeeperToShallower(DFADConfig(alpha=1.0, kl_share=0.0), widths=(8, 8, 8), pooled=8, classes=3)
    batch = rows(0)[0]
    shown = student(batch[0])
    loss = criterion(shown, lambda features: task(features, batch), 0.0)
    (loss.align_token + loss.align_layer + loss.align_global).backward()
    assert student.layers[2].weight.grad is None
    assert float(student.layers[0].weight.grad.abs().sum()) > 0


def test_the_exits_learn_the_task_and_the_deepest_logits():
    torch.manual_seed(0)
    student = Student()
    criterion = DeeperToShallower(DFADConfig(alpha=0.0), widths=(8, 8, 8), pooled=8, classes=3)
    batch = rows(0)[0]
    loss = criterion(student(batch[0]), lambda features: task(features, batch), 0.0)
    loss.total.backward()
    assert all(float(exit.weight.grad.abs().sum()) > 0 for exit in criterion.exits)
    assert float(loss.logits_kl.detach()) > 0
    with pytest.raises(InputError, match="one layer"):
        DeeperToShallower(DFADConfig(), widths=(8,), pooled=8, classes=3)


def test_as_many_exits_as_tokens_are_not_taken_for_tokens(features):
    mask = torch.tensor([[True, False]] * 3)
    shown = features(n=2, widths=(8, 8, 8), logits=(4,), mask=mask, dtype=torch.float32)
    torch.manual_seed(0)
    criterion = DeeperToShallower(DFADConfig(), widths=(8, 8, 8), pooled=8, classes=4)
    whole = criterion(shown, lambda features: features.logits.sum() * 0.0, 0.0)
    with torch.no_grad():
        criterion.exits[1].bias.add_(torch.tensor([3.0, 0.0, 0.0, 0.0]))
    assert float(criterion(shown, lambda features: features.logits.sum() * 0.0, 0.0).logits_kl.detach()) != float(
        whole.logits_kl.detach()
    )


def test_masking_spares_the_first_token_and_padding():
    ids = torch.arange(1, 13).reshape(2, 6)
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    masked = mask_tokens(ids, mask=mask, mask_id=0, share=1.0)
    assert masked.tolist() == [[1, 0, 0, 0, 0, 0], [7, 0, 0, 10, 11, 12]]
    assert torch.equal(mask_tokens(ids, mask=mask, mask_id=0, share=0.0), ids)
