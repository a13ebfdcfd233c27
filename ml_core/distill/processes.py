"""Several processes that train one model (torchrun): joining them, and what they add up after each step."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1


def join() -> World:
    """Join the processes that torchrun started (gloo on CPUs, NCCL on GPUs, each with its own card); alone without."""
    if "WORLD_SIZE" in os.environ and not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return world_now()


def leave() -> None:
    """Take leave of the others at the end."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def world_now() -> World:
    """The processes that have joined; alone where none has."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return World()
    return World(rank=distributed.get_rank(), size=distributed.get_world_size())


def equal_start(models: Mapping[str, nn.Module], *, world: World) -> None:
    """All processes begin with the first one's parameters and buffers."""
    if world.size > 1:
        for model in models.values():
            for tensor in [*model.parameters(), *model.buffers()]:
                distributed.broadcast(tensor.detach(), 0)


def gradients_sum(parameters: list[nn.Parameter], *, world: World) -> None:
    """Sum over processes; a parameter that no process gave a gradient keeps None, so that it does not decay."""
    if world.size == 1:
        return
    given = torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device, dtype=torch.int32)
    distributed.all_reduce(given, distributed.ReduceOp.MAX)
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter, some in zip(parameters, given.tolist(), strict=True):
        if some:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


def buffers_mean(models: Mapping[str, nn.Module], *, world: World) -> None:
    """Running means (of cosines, of batch norms) saw other batches in each process: their mean goes on."""
    if world.size == 1:
        return
    for model in models.values():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                distributed.all_reduce(buffer)
                buffer.div_(world.size)
