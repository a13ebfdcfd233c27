"""Training steps as CUDA graphs: captured once a shape of batch, then replayed: small models wait for no launches."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ml_core.kernels.capture import uncollected

Batch = Mapping[str, Tensor]
Step = Callable[[dict[str, Tensor], Tensor], Any]
_MOST = 24
_LOG = logging.getLogger(__name__)


class StepGraphs:
    """Runs `step(batch, progress)` on a GPU: whole (forward, backward, update), and the same work each time.

    A shape of batch runs as it is the first time, is captured the second time, and replayed from then on; beyond `most`
    shapes, the others run as they are, and the log says which. What a step returns lies in the graph's memory until the
    same shape comes again. The step may neither wait for the device nor branch on data; its optimizer is `capturable`,
    its learning rate a tensor, and `progress`, a share of the training, comes as one.
    """

    def __init__(self, step: Step, *, device: torch.device, most: int = _MOST) -> None:
        self._step, self._most = step, most
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._progress = torch.zeros((), device=device)
        self._seen: set[tuple[Any, ...]] = set()
        self._graphs: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Any]] = {}

    def __call__(self, batch: Batch, progress: float) -> Any:
        """One step; returns what `step` returned."""
        key = tuple((name, tuple(x.shape), x.dtype) for name, x in sorted(batch.items()))
        outer = torch.cuda.current_stream()
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            self._progress.fill_(progress)
            result = self._run(key, batch)
        outer.wait_stream(self._stream)
        return result

    def _run(self, key: tuple[Any, ...], batch: Batch) -> Any:
        if key in self._graphs:
            graph, held, result = self._graphs[key]
            for name, tensor in batch.items():
                held[name].copy_(tensor)
            graph.replay()
            return result
        if key not in self._seen or len(self._graphs) >= self._most:
            if key not in self._seen and len(self._graphs) >= self._most:
                _LOG.warning("%d shapes of batches have a graph; %s runs without one", self._most, key)
            self._seen.add(key)
            return self._step(dict(batch), self._progress)
        held = {name: tensor.clone() for name, tensor in batch.items()}
        graph = torch.cuda.CUDAGraph()
        with uncollected(), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            result = self._step(held, self._progress)
        self._graphs[key] = (graph, held, result)
        graph.replay()  # a capture computes nothing
        return result
