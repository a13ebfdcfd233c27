"""All randomness comes from here: seeds by name, generators, and the state that a resumed run needs."""

import hashlib
import random
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def derive(seed: int, *names: str | int) -> int:
    """A seed in [0, 2^63) for one named purpose: equal names give equal seeds, on every machine."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for one named purpose."""
    return np.random.default_rng(derive(seed, *names))


def torch_generator(seed: int, *names: str | int, device: str = "cpu") -> "torch.Generator":
    """A torch generator for one named purpose."""
    import torch

    return torch.Generator(device=device).manual_seed(derive(seed, *names))


def seed_all(seed: int) -> None:
    """Seed Python, NumPy's legacy state and torch on every device, for the libraries that take no generator."""
    import torch

    random.seed(derive(seed, "python"))
    np.random.seed(derive(seed, "numpy") % 2**32)
    torch.manual_seed(derive(seed, "torch"))


def rng_state() -> "dict[str, Tensor]":
    """The state of torch's generators, as tensors that go into a checkpoint."""
    import torch

    state = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"rng.cuda.{index}": value for index, value in enumerate(torch.cuda.get_rng_state_all())}
    return state


def rng_restore(state: "dict[str, Tensor]") -> None:
    """Put back what rng_state returned."""
    import torch

    torch.set_rng_state(state["rng.cpu"].cpu())
    if torch.cuda.is_available() and "rng.cuda.0" in state:
        torch.cuda.set_rng_state_all([state[f"rng.cuda.{index}"].cpu() for index in range(torch.cuda.device_count())])
