"""What benchmarks on a GPU share: times by CUDA's own events, energy and clocks by NVML, the device's roofline."""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

from ml_core.evals.bench import BenchError, meta, row
from ml_core.kernels.capture import uncollected

Option = TypeVar("Option")
_GROUP = 10  # calls launched behind one another


def gpu_meta(name: str, *, packages: tuple[str, ...] = ("torch", "triton", "transformers")) -> dict[str, Any]:
    """bench.meta, with the GPU, its driver and its power limit."""
    properties = torch.cuda.get_device_properties(0)
    about = {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
    }
    with _Nvml() as nvml:
        about["driver"] = nvml.driver()
        about["power_limit_w"] = nvml.power_limit_w()
    return meta(name, packages=packages) | {"gpu": about}


def cuda_times(call: Callable[[], object], *, seconds: float = 0.3, least: int = 10, most: int = 1000) -> list[float]:
    """Milliseconds of each call on the GPU, by events around it; after three calls to warm up.

    Calls are launched behind one another in groups, so that the GPU has work while the host launches the next; of each
    group the first, which finds the GPU idle and waits for the host, does not count. A call whose launches take longer
    than its work still measures the host.
    """
    for _ in range(3):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or (time.perf_counter() < end and len(times) < most):
        torch.cuda.synchronize()
        pairs = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(_GROUP)]
        for start, stop in pairs:
            start.record()
            call()
            stop.record()
        torch.cuda.synchronize()
        times += [start.elapsed_time(stop) for start, stop in pairs[1:]]
    return times


def replay(call: Callable[[], object], *, repeats: int = 1) -> Callable[[], None]:
    """`repeats` calls as one CUDA graph: their work without the host's share."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with uncollected(), torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    return graph.replay


def replayed_ms(call: Callable[[], object], *, repeats: int = 20) -> float:
    """Milliseconds of a call without its launch: the median over replays of a graph of `repeats` of them."""
    return statistics.median(cuda_times(replay(call, repeats=repeats), seconds=0.0, least=9)) / repeats


def joules(call: Callable[[], object], *, seconds: float = 1.0) -> list[float]:
    """Energy of one call, by the GPU's own counter over `seconds` of calls, three times."""
    values = []
    with _Nvml() as nvml:
        for _ in range(3):
            torch.cuda.synchronize()
            start, count, end = nvml.energy_mj(), 0, time.perf_counter() + seconds
            while time.perf_counter() < end:
                call()
                count += 1
                torch.cuda.synchronize()
            values.append((nvml.energy_mj() - start) / 1e3 / count)
    return values


def peak_bytes(call: Callable[[], object]) -> float:
    """What a call has allocated at most, beyond what was allocated before it."""
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before)


def fastest(
    options: Iterable[Option], make: Callable[[Option], Callable[[], object]], *, runs: int = 5
) -> tuple[Option, list[str]]:
    """The option whose call takes the least time, and what each took or why it did not run.

    Raises BenchError where none runs.
    """
    found: list[tuple[float, Option]] = []
    said = []
    for option in options:
        try:
            times = cuda_times(make(option), seconds=0.0, least=runs)
        except Exception as error:  # noqa: BLE001  what a compiler or a launch refuses has no type of its own
            said.append(f"{option}: {type(error).__name__} {str(error)[:120]}")
            torch.cuda.synchronize()
            continue
        found.append((statistics.median(times), option))
        said.append(f"{option}: {found[-1][0]:.3f} ms")
    if not found:
        raise BenchError("none of the options runs: " + "; ".join(said))
    return min(found, key=lambda each: each[0])[1], said


def roofline() -> list[dict[str, Any]]:
    """What this GPU reaches: TFLOP/s of a bf16 product of 8,192³, and GB/s of a copy of 2 GiB."""
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = [2 * n**3 / ms / 1e9 for ms in cuda_times(lambda: a @ b)]
    source = torch.empty(1 << 30, device="cuda", dtype=torch.int8)
    target = torch.empty_like(source)
    copy = [2 * source.numel() / ms / 1e6 for ms in cuda_times(lambda: target.copy_(source))]
    return [
        row("roofline/matmul8192_bf16", system="cublas", metric="tflops", unit="TFLOP/s", values=product),
        row("roofline/copy1g", system="torch", metric="gb_s", unit="GB/s", values=copy),
    ]


class _Nvml:
    """NVML of the first GPU, open while in use."""

    def __enter__(self) -> "_Nvml":
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._device = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        return self

    def __exit__(self, *_: object) -> None:
        self._nvml.nvmlShutdown()

    def energy_mj(self) -> float:
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device))

    def driver(self) -> str:
        return str(self._nvml.nvmlSystemGetDriverVersion())

    def power_limit_w(self) -> float:
        return float(self._nvml.nvmlDeviceGetEnforcedPowerLimit(self._device)) / 1e3
