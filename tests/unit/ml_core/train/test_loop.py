"""The distillation loop: learns, accumulates rightly, and resumes to the same bits."""

import math

import pytest
import torch
from torch import nn

from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.features import Features
from ml_core.errors import RunError
from ml_core.events import EventLog, read
from ml_core.train.loop import LoopConfig, cosine_rate, train

CONFIG = LoopConfig(epochs=4, lr=1e-2, accumulation=4, seed=5)


class Student(nn.Module):
    """Two layers with dropout: its random numbers must go on where they were."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.dropout = nn.Linear(6, 8), nn.Linear(8, 3), nn.Dropout(0.3)

    def forward(self, x):
        hidden = self.dropout(torch.tanh(self.first(x)))
        return Features(layers=(hidden[:, None],), pooled=hidden, logits=self.second(hidden))


def batches(epoch):
    generator = torch.Generator().manual_seed(epoch)
    return [torch.randn(8, 6, generator=generator) for _ in range(10)]


def go(folder, *, config=CONFIG, on_epoch=None):
    torch.manual_seed(1)
    student, dfad = Student(), DFAD(DFADConfig(warmup_steps=5), (12,), (8,))
    mixing = torch.randn(6, 12)

    def loss(model, x, progress):
        teacher = Features(layers=((x @ mixing)[:, None],), pooled=x @ mixing, logits=torch.stack([x[:, 0]] * 3, 1))
        task = nn.functional.cross_entropy(model(x).logits, (x[:, 0] > 0).long())
        return dfad(model(x), teacher, task, progress)

    with EventLog(folder) as log:
        train(
            student,
            config=config,
            batches=batches,
            batches_per_epoch=10,
            loss=loss,
            folder=folder,
            log=log,
            criterion=dfad,
            on_epoch=on_epoch,
        )
    return [*student.state_dict().values(), *dfad.state_dict().values()]


def test_a_run_cut_off_and_resumed_reaches_the_same_bits(tmp_path):
    whole = go(tmp_path / "whole")

    def cut(epoch):
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", on_epoch=cut)
    resumed = go(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    texts = [event.get("text", "") for event in read(tmp_path / "cut" / "events.jsonl")[0]]
    assert "resumed after epoch 2 of 4" in texts


def test_steps_carry_the_schedules_and_the_alignment_by_level(tmp_path):
    go(tmp_path)
    steps = [event for event in read(tmp_path / "events.jsonl")[0] if event["kind"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 13))
    assert {event["steps"] for event in steps} == {12}
    assert [steps[i]["alpha"] for i in (0, 3, 6, 9)] == pytest.approx([0.7, 0.525, 0.35, 0.175])
    assert set(steps[0]["align"]) == {"token", "layer", "global"}
    assert steps[-1]["lr"] < steps[0]["lr"] == pytest.approx(1e-2)
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_accumulated_batches_weigh_as_one_large_batch(tmp_path):
    def weights_after(accumulation, size):
        torch.manual_seed(0)
        model = nn.Linear(6, 1)
        xs = torch.randn(24, 6, generator=torch.Generator().manual_seed(3)).split(size)
        config = LoopConfig(epochs=1, lr=0.1, accumulation=accumulation, max_grad_norm=1e9)
        folder = tmp_path / str(accumulation)
        with EventLog(folder) as log:
            train(
                model,
                config=config,
                batches=lambda epoch: xs,
                batches_per_epoch=len(xs),
                loss=lambda m, x, p: (m(x) - x[:, :1]).pow(2).mean(),
                folder=folder,
                log=log,
            )
        return model.weight.detach()

    assert torch.allclose(weights_after(1, 12), weights_after(3, 4), atol=1e-5)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    model = nn.Linear(2, 1)
    with EventLog(tmp_path) as log, pytest.raises(RunError, match="epoch 1, batch 1"):
        train(
            model,
            config=LoopConfig(epochs=1),
            batches=lambda epoch: [torch.zeros(1, 2)],
            batches_per_epoch=1,
            loss=lambda m, x, p: m(x).sum() * math.nan,
            folder=tmp_path,
            log=log,
        )


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    go(tmp_path)
    with pytest.raises(RunError, match="other settings"):
        go(tmp_path, config=LoopConfig(epochs=4, lr=1e-3, accumulation=4, seed=5))


def test_the_rate_is_half_a_cosine():
    assert cosine_rate(0, steps=10, peak=2.0) == 2.0
    assert cosine_rate(5, steps=10, peak=2.0) == pytest.approx(1.0)
    assert cosine_rate(10, steps=10, peak=2.0) == pytest.approx(0.0)
