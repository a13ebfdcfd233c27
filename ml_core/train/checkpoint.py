"""Settings of the training loop, and its checkpoints: all that going on needs, in one safetensors file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ml_core.config import from_mapping, to_mapping
from ml_core.errors import RunError


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """The source's settings of DFAD training by default (engine.md, section 1).

    log_every: steps between two step events; between them nothing waits for the device. checkpoint_steps: steps
    between two checkpoints; 0 means only at the end of each epoch. checkpoint_seconds: an epoch's end writes one only
    where the last is so old (short trainings cost less to repeat than to save). None of these changes what is trained.
    graphs: steps as CUDA graphs (graphs.StepGraphs): on one GPU, without accumulation, with a loss that never waits for
    the device and takes `progress` as a tensor.
    """

    epochs: int
    lr: float = 3e-5
    weight_decay: float = 0.01
    accumulation: int = 4
    max_grad_norm: float = 1.0
    seed: int = 0
    log_every: int = 1
    checkpoint_steps: int = 0
    checkpoint_seconds: float = 0.0
    graphs: bool = False


def checkpoint_save(
    place: Path,
    *,
    models: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    config: LoopConfig,
    steps_done: int,
) -> None:
    """Write everything that going on needs into one safetensors file, whole or not at all.

    Random numbers need no state: every step begins with its own seed.
    """
    tensors = {
        f"{prefix}.{name}": tensor.detach().cpu().contiguous().clone()
        for prefix, model in models.items()
        for name, tensor in model.state_dict().items()
    }
    tensors |= {
        f"optimizer.{index}.{key}": value.detach().cpu().clone()
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.partial")
    body = {"steps_done": steps_done, "config": to_mapping(config)}
    save_file(tensors, partial, metadata={"state": json.dumps(body)})
    partial.replace(place)


def checkpoint_load(
    place: Path, *, models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, config: LoopConfig
) -> int:
    """Put a checkpoint back into models and optimiser; returns the number of steps done."""
    with safe_open(place, framework="pt") as stream:
        body = json.loads(stream.metadata()["state"])
    if _training(from_mapping(LoopConfig, body["config"])) != _training(config):
        raise RunError(f"{place} was written with other settings")
    tensors = load_file(place)
    for prefix, model in models.items():
        own = {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
        model.load_state_dict(own)
    state = optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state["state"].setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(state)
    return int(body["steps_done"])


def _training(config: LoopConfig) -> LoopConfig:
    return replace(config, log_every=1, checkpoint_steps=0, checkpoint_seconds=0.0, graphs=False)
