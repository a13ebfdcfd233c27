"""Steps as CUDA graphs: refused without a GPU; on one, the same training as step by step."""

import copy

import pytest
import torch
from torch import nn

from ml_core.errors import RunError
from ml_core.train.checkpoint import LoopConfig
from ml_core.train.loop import train

WIDTHS = (8, 16)  # two shapes of batch, one graph each
EPOCHS, BATCHES = 4, 6
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def small(seed, *, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Dropout(dropout), nn.Linear(32, 2))


def batches(device):
    generator = torch.Generator().manual_seed(3)
    made = [torch.randn(5, WIDTHS[index % 2], 4, generator=generator).to(device) for index in range(BATCHES)]
    return lambda epoch: [{"x": x, "y": (x.mean(1) > 0)[:, 0].long()} for x in made]


def loss(model, batch, progress):
    return (1.0 - 0.5 * progress) * nn.functional.cross_entropy(model(batch["x"]).mean(1), batch["y"])


def run(model, folder, *, graphs, device):
    config = LoopConfig(epochs=EPOCHS, lr=1e-2, accumulation=1, graphs=graphs, log_every=BATCHES)
    train(model, config=config, batches=batches(device), batches_per_epoch=BATCHES, loss=loss, folder=folder, log=None)
    return model


def test_graphs_want_a_gpu(tmp_path):
    with pytest.raises(RunError, match="graphs: the model is on cpu"):
        run(small(0), tmp_path, graphs=True, device="cpu")


def test_graphs_want_one_batch_a_step(tmp_path):
    config = LoopConfig(epochs=1, accumulation=2, graphs=True)
    with pytest.raises(RunError, match="without accumulation"):
        train(
            small(0), config=config, batches=batches("cpu"), batches_per_epoch=6, loss=loss, folder=tmp_path, log=None
        )


@pytest.mark.gpu
@needs_gpu
def test_a_training_by_graphs_is_the_one_step_by_step(tmp_path):
    start = small(0).to("cuda")
    plain = run(copy.deepcopy(start), tmp_path / "plain", graphs=False, device="cuda")
    graphed = run(copy.deepcopy(start), tmp_path / "graphed", graphs=True, device="cuda")
    for (name, a), b in zip(plain.state_dict().items(), graphed.state_dict().values(), strict=True):
        # the fused update rounds otherwise than the plain one; 24 steps of rate 0.01 move weights by up to 0.2
        assert torch.allclose(a, b, atol=1e-5), name
    moved = [(a - b).abs().max() for a, b in zip(start.parameters(), plain.parameters(), strict=True)]
    assert min(moved) > 1e-3  # 24 updates of up to .01


@pytest.mark.gpu
@needs_gpu
def test_dropout_differs_from_replay_to_replay(tmp_path):
    seen = []

    def watched(model, batch, progress):
        hidden = model[2](torch.ones(64, device="cuda"))
        seen.append(hidden)
        return loss(model, batch, progress) + 0.0 * hidden.sum()

    config = LoopConfig(epochs=2, lr=1e-3, accumulation=1, graphs=True, log_every=BATCHES)
    masks = []

    def kept(step):
        masks.append(seen[-1].clone())

    train(
        small(0, dropout=0.5).to("cuda"), config=config, batches=batches("cuda"), batches_per_epoch=BATCHES,
        loss=watched, folder=tmp_path, log=None, on_step=kept,
    )  # fmt: skip
    replayed = masks[-4::2]  # of one shape: one graph's own memory
    assert not torch.equal(replayed[0], replayed[1])
