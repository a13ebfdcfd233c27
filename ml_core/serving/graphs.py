"""CUDA graphs in fixed buckets: inputs are copied in and padded, results are copied out, nothing static is handed on.

A replay costs one launch where the kernels one by one would cost hundreds. Where there is no CUDA the same buckets run
eagerly, under another name: `runner_for` takes one or the other, and says which.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from ml_core.errors import InputError
from ml_core.kernels.capture import uncollected

MOST_BUCKETS = 16
_WARM_UPS = 3  # cuBLAS and Triton settle workspaces and tiles in their first calls, which a capture must not see
_LOG = logging.getLogger(__name__)

Axes = tuple[str | None, ...]
Call = Callable[..., Tensor | tuple[Tensor, ...]]


def runner_for(device: torch.device | str, fn: Call, **given: Any) -> "GraphRunner | EagerRunner":
    """GraphRunner(fn, …) on CUDA, EagerRunner(fn, …) elsewhere; the log and the runner's `report` say which."""
    on_cuda = torch.device(device).type == "cuda"
    runner = GraphRunner(fn, device=device, **given) if on_cuda else EagerRunner(fn, device=device, **given)
    _LOG.info("%s on %s", runner.kind, device)
    return runner


@dataclass(kw_only=True)
class Bucket:
    """Sizes of the named axes, the static inputs of that size, and how often it ran."""

    sizes: dict[str, int]
    inputs: dict[str, Tensor]
    calls: int = 0
    numel: int = field(init=False)

    def __post_init__(self) -> None:
        self.numel = sum(each.numel() for each in self.inputs.values())

    def takes(self, sizes: Mapping[str, int]) -> bool:
        """Whether inputs of these sizes fit in."""
        return all(size <= self.sizes[axis] for axis, size in sizes.items())

    def __str__(self) -> str:
        return " ".join(f"{axis}={size}" for axis, size in self.sizes.items()) or "(fixed)"


class EagerRunner:
    """The buckets without a graph: the same padding, the same slices, the same errors; each call runs `fn` as it is.

    fn(**inputs) returns a tensor or a tuple of tensors; rows that are padding must not change the others.
    """

    kind = "eager, no CUDA graphs"

    def __init__(
        self,
        fn: Call,
        *,
        device: torch.device | str,
        examples: Sequence[Mapping[str, Tensor]],
        axes: Mapping[str, Axes],
        outputs: Sequence[Axes],
        fill: Mapping[str, float] | None = None,
    ) -> None:
        """examples: one set of inputs a bucket, at most 16. axes: a name for each dimension of an input that varies
        between buckets, None for the others. outputs: the same for what fn returns. fill: what pads an input, 0 unless
        given.

        Raises InputError naming what is wrong.
        """
        self.fn, self.axes, self.outputs = fn, dict(axes), tuple(outputs)
        self.fill = dict.fromkeys(axes, 0.0) | dict(fill or {})
        self.device = torch.device(device)
        if unknown := set(self.fill) - set(axes):
            raise InputError(f"fill: {sorted(unknown)} is no input")
        with torch.inference_mode(False):
            self.buckets = self._sorted(examples)
        self._lock = RLock()

    def __call__(self, **inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """fn(**inputs) by the smallest bucket that holds them. The result is the caller's own memory.

        Raises InputError where they do not fit into the largest bucket.
        """
        sizes = self._sizes(inputs, where="inputs")
        bucket = self.bucket_of(sizes)
        self._check(inputs, bucket=bucket)
        # the static tensors are no inference tensors, so that callers in and out of inference mode may write to them
        with self._lock, torch.inference_mode(False), torch.no_grad():
            return self._run(bucket, inputs, sizes)

    def bucket_of(self, sizes: Mapping[str, int]) -> Bucket:
        """The smallest bucket that takes these sizes."""
        fitting = [each for each in self.buckets if each.takes(sizes)]
        if not fitting:
            largest = ", ".join(map(str, self.buckets))
            raise InputError(f"inputs: {dict(sizes)} fits into none of the buckets {largest}")
        return fitting[-1]

    def report(self) -> str:
        """What runs, and each bucket with its calls: lines to print."""
        return "\n".join([f"{self.kind} on {self.device}", *(f"  {each}: {each.calls} calls" for each in self.buckets)])

    def _run(self, bucket: Bucket, inputs: Mapping[str, Tensor], sizes: Mapping[str, int]) -> Any:
        self._copy_in(bucket, inputs)
        bucket.calls += 1
        return self._copy_out(self.fn(**bucket.inputs), sizes=sizes, bucket=bucket)

    def _copy_in(self, bucket: Bucket, inputs: Mapping[str, Tensor]) -> None:
        for name, held in bucket.inputs.items():
            given = inputs[name]
            if given.shape != held.shape:
                held.fill_(self.fill[name])
                held = held[tuple(slice(0, size) for size in given.shape)]
            held.copy_(given)

    def _copy_out(self, result: Any, *, sizes: Mapping[str, int], bucket: Bucket) -> Any:
        several = isinstance(result, tuple)
        found = result if several else (result,)
        self._check_outputs(found, bucket=bucket)
        cut = tuple(
            each[tuple(slice(None) if axis is None else slice(0, sizes[axis]) for axis in axes)].clone()
            for each, axes in zip(found, self.outputs, strict=True)
        )
        return cut if several else cut[0]

    def _check_outputs(self, found: Sequence[Tensor], *, bucket: Bucket) -> None:
        if len(found) != len(self.outputs):
            raise InputError(f"outputs: fn returned {len(found)} tensors, {len(self.outputs)} are described")
        for number, (each, axes) in enumerate(zip(found, self.outputs, strict=True)):
            if each.ndim != len(axes):
                raise InputError(f"outputs: number {number} has {each.ndim} dimensions, {len(axes)} are described")
            for at, axis in enumerate(axes):
                if axis is not None and each.shape[at] != bucket.sizes.get(axis):
                    raise InputError(
                        f"outputs: number {number} is {tuple(each.shape)}, not {axis} wide in bucket {bucket}"
                    )

    def _sorted(self, examples: Sequence[Mapping[str, Tensor]]) -> list[Bucket]:
        """The buckets, largest first: graphs captured later find room in the memory of earlier, larger ones."""
        if not 1 <= len(examples) <= MOST_BUCKETS:
            raise InputError(f"examples: {len(examples)} buckets; between 1 and {MOST_BUCKETS} can be made")
        made = []
        for each in examples:
            held = {name: tensor.detach().to(self.device).clone() for name, tensor in each.items()}
            made.append(Bucket(sizes=self._sizes(each, where="examples"), inputs=held))
        if len({tuple(sorted(each.sizes.items())) for each in made}) < len(made):
            raise InputError("examples: two of the same sizes")
        return sorted(made, key=lambda bucket: bucket.numel, reverse=True)

    def _sizes(self, inputs: Mapping[str, Tensor], *, where: str) -> dict[str, int]:
        if set(inputs) != set(self.axes):
            raise InputError(f"{where}: expected {sorted(self.axes)}, got {sorted(inputs)}")
        sizes: dict[str, int] = {}
        for name, tensor in inputs.items():
            if tensor.ndim != len(self.axes[name]):
                raise InputError(f"{name}: expected {len(self.axes[name])} dimensions, got {tuple(tensor.shape)}")
            for axis, size in zip(self.axes[name], tensor.shape, strict=True):
                if axis is not None and sizes.setdefault(axis, size) != size:
                    raise InputError(f"{name}: {axis} is {size} here and {sizes[axis]} in another input")
        return sizes

    def _check(self, inputs: Mapping[str, Tensor], *, bucket: Bucket) -> None:
        for name, held in bucket.inputs.items():
            given = inputs[name]
            if given.dtype != held.dtype or given.device.type != held.device.type:
                raise InputError(f"{name}: expected {held.dtype} on {held.device}, got {given.dtype} on {given.device}")
            for axis, size, wanted in zip(self.axes[name], given.shape, held.shape, strict=True):
                if axis is None and size != wanted:
                    raise InputError(f"{name}: expected {tuple(held.shape)} but for its axes, got {tuple(given.shape)}")


class GraphRunner(EagerRunner):
    """Each bucket captured as a CUDA graph when the runner is made; see EagerRunner for the arguments.

    fn must do the same work whatever the values are, and may not wait for the device. Threads take turns, on whatever
    stream each of them is. All graphs share one memory pool. Nothing ever runs eagerly.
    """

    kind = "CUDA graphs"

    def __init__(self, fn: Call, *, device: torch.device | str, **given: Any) -> None:
        if torch.device(device).type != "cuda":
            raise InputError(f"device: CUDA graphs need CUDA, not {device}; EagerRunner runs there")
        super().__init__(fn, device=device, **given)
        self.pool = GraphPool(self.device)
        self._captured = {id(each): self.pool.capture(self._call(each)) for each in self.buckets}
        for each in self.buckets:
            found = self._captured[id(each)].result
            self._check_outputs(found if isinstance(found, tuple) else (found,), bucket=each)

    def _call(self, bucket: Bucket) -> Callable[[], Any]:
        return lambda: self.fn(**bucket.inputs)

    def _run(self, bucket: Bucket, inputs: Mapping[str, Tensor], sizes: Mapping[str, int]) -> Any:
        with self.pool.turn():
            self._copy_in(bucket, inputs)
            bucket.calls += 1
            captured = self._captured[id(bucket)]
            captured.replay()
            return self._copy_out(captured.result, sizes=sizes, bucket=bucket)

    def report(self) -> str:
        """What runs, each bucket with its replays, and the memory that the graphs share."""
        lines = [f"  {each}: {each.calls} replays" for each in self.buckets]
        return "\n".join([f"{self.kind} on {self.device}, {self.pool.report()}", *lines])


@dataclass(kw_only=True)
class Captured:
    """A graph and what its function returned: static memory, rewritten by each replay."""

    graph: "torch.cuda.CUDAGraph"
    result: Any
    replays: int = 0

    def replay(self) -> None:
        """Run it on the current stream."""
        self.replays += 1
        self.graph.replay()


class GraphPool:
    """Captures functions into graphs that share one memory pool: of all of them only one may run at a time (`turn`)."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise InputError(f"device: CUDA graphs need CUDA, not {device}")
        self.device = device
        self.bytes = 0
        self._stream = torch.cuda.Stream(device)
        self._handle = torch.cuda.graph_pool_handle()
        self._free = torch.cuda.Event()
        self._captured: list[Captured] = []

    def capture(self, call: Callable[[], Any], *, warm_ups: int = _WARM_UPS) -> Captured:
        """call() as a graph. It runs `warm_ups` times before, on the side stream; capturing itself computes nothing."""
        with torch.cuda.device(self.device), torch.no_grad():
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(warm_ups):
                    call()
            torch.cuda.current_stream().wait_stream(self._stream)
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved(self.device)
            graph = torch.cuda.CUDAGraph()
            with uncollected(), torch.cuda.graph(graph, pool=self._handle, stream=self._stream):
                result = call()
            self.bytes += torch.cuda.memory_reserved(self.device) - before
        self._captured.append(Captured(graph=graph, result=result))
        return self._captured[-1]

    @contextmanager
    def turn(self) -> Iterator[None]:
        """In it the current stream owns the graphs' memory: it waits for the stream that had it last."""
        with torch.cuda.device(self.device):
            torch.cuda.current_stream().wait_event(self._free)
            try:
                yield
            finally:
                self._free.record(torch.cuda.current_stream())

    def report(self) -> str:
        """Number of graphs, their shared memory and replays."""
        replays = sum(each.replays for each in self._captured)
        return f"{len(self._captured)} graphs in one pool of {self.bytes / 2**20:.1f} MiB, {replays} replays"


def compiled_step(step: Callable[[], None]) -> Callable[[], None]:
    """The step by inductor, whole or not at all: every bucket is a shape, and none falls back to eager at a limit.

    Fewer and larger kernels, to be captured after; the first call takes the time that compiling takes.
    """
    made = torch.compile(step, fullgraph=True, dynamic=False)

    def run() -> None:
        with torch._dynamo.config.patch(recompile_limit=4 * MOST_BUCKETS):
            made()

    return run
