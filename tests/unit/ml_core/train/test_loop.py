"""The distillation loop: learns, accumulates rightly, and resumes to the same bits."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ml_core.distill.cost import Meter
from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.features import Features
from ml_core.distill.selfteach import EMATeacher
from ml_core.errors import RunError
from ml_core.events import EventLog, read
from ml_core.train.checkpoint import LoopConfig
from ml_core.train.loop import cosine_rate, train

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


def go(folder, *, config=CONFIG, on_epoch=None, on_step=None, draw=batches):
    torch.manual_seed(1)
    student, dfad = Student(), DFAD(DFADConfig(warmup_steps=5), (12,), (8,))
    mixing = torch.randn(6, 12)
    ema, meter = EMATeacher(student, decay=0.9), Meter()

    def stepped(step):
        ema.follow(student)
        if on_step is not None:
            on_step(step)

    def loss(model, x, progress):
        teacher = Features(layers=((x @ mixing)[:, None],), pooled=x @ mixing, logits=torch.stack([x[:, 0]] * 3, 1))
        task = nn.functional.cross_entropy(model(x).logits, (x[:, 0] > 0).long())
        shown = model(x)
        with meter.mark(x.device):
            return dfad(shown, teacher, task, progress)

    with EventLog(folder) as log:
        train(
            student,
            config=config,
            batches=draw,
            batches_per_epoch=10,
            loss=loss,
            folder=folder,
            log=log,
            criterion=dfad,
            companions={"ema": ema},
            on_epoch=on_epoch,
            on_step=stepped,
            meter=meter,
        )
    return [value for module in (student, dfad, ema) for value in module.state_dict().values()]


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


def drawn_lazily(epoch):
    """Batches that come from the global random numbers, one by one, in an order drawn at the start."""
    order = torch.randperm(10)
    for number in order.tolist():
        yield batches(epoch)[number] + 0.1 * torch.randn(8, 6)


@pytest.mark.parametrize("draw", [batches, drawn_lazily])
@pytest.mark.parametrize("at", [1, 2, 4, 5, 11])
def test_a_run_cut_off_within_an_epoch_reaches_the_same_bits_average_and_criterion_included(tmp_path, at, draw):
    config = replace(CONFIG, checkpoint_steps=1)
    whole = go(tmp_path / "whole", config=CONFIG, draw=draw)

    def cut(step):
        # the step before is in the checkpoint, this one is lost
        if step == at + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", config=config, on_step=cut, draw=draw)
    resumed = go(tmp_path / "cut", config=config, draw=draw)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    texts = [event.get("text", "") for event in read(tmp_path / "cut" / "events.jsonl")[0]]
    epoch, step = divmod(at, 3)
    assert f"resumed after epoch {epoch} of 4" + (f", step {step} of 3" if step else "") in texts


def test_a_checkpoint_that_was_being_written_does_not_spoil_the_one_before(tmp_path):
    go(tmp_path, config=replace(CONFIG, epochs=4))
    place = tmp_path / "checkpoints" / "last.safetensors"
    (place.parent / f".{place.name}.partial").write_bytes(b"half of it")
    go(tmp_path)
    assert [path.name for path in place.parent.iterdir() if not path.name.startswith(".")] == ["last.safetensors"]


def test_events_may_be_rarer_and_their_loss_is_the_mean_of_the_steps_between(tmp_path):
    go(tmp_path / "each")
    go(tmp_path / "rare", config=replace(CONFIG, log_every=2))
    each, rare = (
        [event for event in read(tmp_path / name / "events.jsonl")[0] if event["kind"] == "step"]
        for name in ("each", "rare")
    )
    assert [event["step"] for event in rare] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert rare[0]["loss"] == pytest.approx((each[0]["loss"] + each[1]["loss"]) / 2)
    assert rare[1]["loss"] == pytest.approx(each[2]["loss"])


def test_every_epoch_says_what_alignment_cost_and_how_far_each_pair_is(tmp_path):
    go(tmp_path)
    events = read(tmp_path / "events.jsonl")[0]
    metrics = [event["metrics"] for event in events if event["kind"] == "eval" and event["split"] == "alignment"]
    assert len(metrics) == 4
    assert set(metrics[0]) == {"cos_1", "cka_1", "weight_1", "align_ms", "step_ms", "align_share"}
    assert 0 < metrics[0]["align_share"] < 1
    assert sum("alignment forward" in event.get("text", "") for event in events) == 4


@pytest.mark.parametrize(("said", "named"), [(9, "more"), (11, "fewer")])
def test_another_number_of_batches_than_said_is_an_error(tmp_path, said, named):
    with EventLog(tmp_path) as log, pytest.raises(RunError, match=named):
        train(
            nn.Linear(6, 1),
            config=LoopConfig(epochs=1),
            batches=batches,
            batches_per_epoch=said,
            loss=lambda m, x, p: m(x).pow(2).mean(),
            folder=tmp_path,
            log=log,
        )


def test_a_bar_is_drawn_on_a_terminal_and_nowhere_else(tmp_path, monkeypatch, capsys):
    go(tmp_path / "plain")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    go(tmp_path / "terminal")
    assert "12/12" in capsys.readouterr().err


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
