"""Which machine a measurement is of: the processor and what it can do, the threads, the engines' versions."""

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from ml_core.serving.engines.packages import versions

# what decides how fast, and how exact, integer and half products are
_FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Machine:
    """cpu: the model's name, family and stepping. threads: of one operator. versions: by package, or "absent"."""

    cpu: str
    flags: tuple[str, ...]
    cores: int
    threads: int
    versions: dict[str, str]

    @property
    def key(self) -> str:
        """12 hex digits, of everything above."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        engines = ", ".join(f"{name} {version}" for name, version in sorted(self.versions.items()))
        return f"{self.cpu} ({' '.join(self.flags)}), {self.cores} cores, {self.threads} threads, {engines}"


def this_machine(*, threads: int) -> Machine:
    """This one. Imports no engine."""
    about = _cpuinfo()
    place = " ".join(f"{name} {about[name]}" for name in ("cpu family", "model", "stepping") if name in about)
    present = set(about.get("flags", about.get("Features", "")).split())
    return Machine(
        cpu=f"{about.get('model name', platform.processor() or platform.machine())} {place}".strip(),
        flags=tuple(flag for flag in _FLAGS if flag in present),
        cores=os.cpu_count() or 1,
        threads=threads,
        versions=versions(),
    )


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; nothing where there is none."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
