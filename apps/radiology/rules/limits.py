"""How large an uploaded thing may be: the numbers that intake checks before it allocates anything."""

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bytes, pixels and seconds. `memory_bytes` bounds the address space of the decoding child (RLIMIT_AS)."""

    file_bytes: int = 1024 * MIB
    side: int = 32_768
    frames: int = 20_000
    frame_bytes: int = 256 * MIB
    decoded_bytes: int = 1024 * MIB
    memory_bytes: int = 3 * 1024 * MIB
    seconds: float = 60.0
    archive_entries: int = 5_000
    archive_bytes: int = 4 * 1024 * MIB


DEFAULT = Limits()


def size_words(count: int) -> str:
    """A number of bytes as people read it: `512 B`, `20.0 KiB`, `1.5 GiB`."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"
