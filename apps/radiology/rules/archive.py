"""Opens a zip with distrust: names are only labels, sizes are summed as declared and as they really come out."""

import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from apps.radiology.rules.limits import Limits, size_words

_CHUNK = 1 << 20
_NESTED = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")


class ArchiveError(Exception):
    """The archive as a whole cannot be taken in; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One file of an archive at `path` (None: it did not come out), and why it is refused unread ("": it is not)."""

    name: str
    path: Path | None
    reason: str = ""


def is_zip(path: Path) -> bool:
    """Whether the file begins as a zip does."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def entries(path: Path, *, folder: Path, limits: Limits) -> Iterator[Entry]:
    """Unpack entry by entry into `folder` under names of our own; the caller removes each file after use.

    Raises ArchiveError where the whole is damaged or over a limit (too many entries, declared bytes).
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ArchiveError("the zip is damaged: its list of files cannot be read") from error
    with archive:
        listed = [entry for entry in archive.infolist() if not entry.is_dir()]
        if len(listed) > limits.archive_entries:
            raise ArchiveError(f"the zip holds {len(listed):,} files: the limit is {limits.archive_entries:,}")
        declared = sum(entry.file_size for entry in listed)
        if declared > limits.archive_bytes:
            raise ArchiveError(
                f"the zip would unpack to {size_words(declared)}: the limit is {size_words(limits.archive_bytes)}"
            )
        room = limits.archive_bytes
        for index, entry in enumerate(listed):
            name = _label(entry.filename)
            target = folder / f"entry-{index}"
            reason, written = _unpack(archive, entry, target, limits=limits, room=room)
            room -= written
            yield Entry(name=name, path=target if target.exists() else None, reason=reason)


def _unpack(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, *, limits: Limits, room: int
) -> tuple[str, int]:
    """(reason for refusal or "", bytes that came out)."""
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "a symbolic link in the zip", 0
    if entry.flag_bits & 0x1:
        return "encrypted in the zip", 0
    try:
        with archive.open(entry) as source, target.open("wb") as out:
            written = _copy(source, out, most=min(limits.file_bytes, room))
    except _TooLargeError as error:
        target.unlink()
        return "it unpacks to more than is allowed", error.written
    except Exception:  # noqa: BLE001  zlib, bz2, lzma and zipfile each raise their own on damaged data
        target.unlink(missing_ok=True)
        return "damaged in the zip: it cannot be unpacked", 0
    with target.open("rb") as file:
        start = file.read(8)
    if start.startswith(_NESTED):
        return "an archive in an archive", written
    return "", written


class _TooLargeError(Exception):
    def __init__(self, written: int) -> None:
        super().__init__()
        self.written = written


def _copy(source: IO[bytes], out: IO[bytes], *, most: int) -> int:
    written = 0
    while chunk := source.read(_CHUNK):
        written += len(chunk)
        if written > most:
            raise _TooLargeError(written)
        out.write(chunk)
    return written


def _label(name: str) -> str:
    """What to call the entry on a page: the last parts of its name, never used as a path."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    shown = "".join(sign for sign in "/".join(parts[-2:]) if sign.isprintable())
    return shown[-255:] or "unnamed"
