"""Run by test_processes, alone or under torchrun: a small distillation, and one that is cut off and resumed."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ml_core.distill import processes
from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.features import Features
from ml_core.distill.selfteach import EMATeacher
from ml_core.events import EventLog
from ml_core.train.checkpoint import LoopConfig
from ml_core.train.loop import train

CONFIG = LoopConfig(epochs=3, lr=3e-3, accumulation=4, seed=5, checkpoint_steps=1)


class Student(nn.Module):
    """One hidden layer; `dropout` draws other numbers in each process, so the comparison is made without."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first, self.second, self.dropout = nn.Linear(6, 8), nn.Linear(8, 3), nn.Dropout(dropout)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        hidden = self.dropout(torch.tanh(self.first(x)))
        return Features(layers=(hidden[:, None],), pooled=hidden, logits=self.second(hidden))


def batches(epoch):
    generator = torch.Generator().manual_seed(epoch)
    return [torch.randn(8, 6, generator=generator) for _ in range(9)]


def go(folder: Path, *, world, weighting, dropout=0.0, cut_at=0):
    # other weights in each process: the first one's must win
    torch.manual_seed(1 + world.rank)
    student, dfad = Student(dropout), DFAD(DFADConfig(weighting=weighting, warmup_steps=2), (12,), (8,))
    mixing = torch.randn(6, 12, generator=torch.Generator().manual_seed(7))
    ema = EMATeacher(student, decay=0.9)

    def loss(model, x, progress):
        teacher = Features(layers=((x @ mixing)[:, None],), pooled=x @ mixing, logits=torch.stack([x[:, 0]] * 3, 1))
        shown = model(x)
        task = nn.functional.cross_entropy(shown.logits, (x[:, 0] > 0).long())
        return dfad(shown, teacher, task, progress)

    def on_step(step):
        ema.follow(student)
        if step == cut_at:
            raise KeyboardInterrupt

    log = EventLog(folder) if world.rank == 0 else None
    train(
        student, config=CONFIG, batches=batches, batches_per_epoch=9, loss=loss, folder=folder, log=log,
        criterion=dfad, companions={"ema": ema}, on_step=on_step,
    )  # fmt: skip
    modules = {"student": student, "dfad": dfad, "ema": ema}
    return {f"{name}.{key}": t.clone() for name, m in modules.items() for key, t in m.state_dict().items()}


def main(root: Path) -> None:
    torch.set_num_threads(1)
    world = processes.join()
    for weighting in ("uniform", "default"):
        whole = go(root / weighting, world=world, weighting=weighting)
        save_file({k: v.contiguous() for k, v in whole.items()}, root / f"{weighting}-{world.rank}.safetensors")
    dropped = go(root / "dropout", world=world, weighting="default", dropout=0.3)
    try:
        go(root / "cut", world=world, weighting="default", dropout=0.3, cut_at=5)
    except KeyboardInterrupt:
        resumed = go(root / "cut", world=world, weighting="default", dropout=0.3)
        assert all(torch.equal(dropped[name], resumed[name]) for name in dropped), "resumed to other bits"
        (root / f"resumed-{world.rank}").touch()
    processes.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
