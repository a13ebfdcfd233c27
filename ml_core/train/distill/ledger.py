"""What is finished, one line a cell: an interrupted benchmark goes on behind the last whole line."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_core.config import from_mapping, to_mapping
from ml_core.distill.tasks.results import Cell

CELLS = "cells.jsonl"


class Ledger:
    """FOLDER/cells.jsonl and FOLDER/outputs/*.npy; a line torn by a crash is passed over."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / CELLS
        (folder / "outputs").mkdir(parents=True, exist_ok=True)
        self._cells: dict[tuple[str, str, int, str], Cell] = {}
        self._read = 0
        self.refresh()

    def refresh(self) -> None:
        """Read what other processes have added."""
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            stream.seek(self._read)
            lines = stream.read()
        whole = lines[: lines.rfind(b"\n") + 1]  # a line that is being written is read the next time
        self._read += len(whole)
        for line in whole.decode().splitlines():
            if (body := _parsed(line)) is not None:
                self._keep(from_mapping(Cell, body))

    def find(self, *, case: str, system: str, seed: int, settings: str) -> Cell | None:
        """The last such cell that was finished under the same settings, if its logits are there."""
        cell = self._cells.get((case, system, seed, settings))
        return cell if cell is not None and (self.folder / cell.outputs).exists() else None

    def latest(self, *, case: str, system: str, seed: int) -> Cell | None:
        """The last such cell under any settings, if its logits are there."""
        found = [cell for key, cell in self._cells.items() if key[:3] == (case, system, seed)]
        return found[-1] if found and (self.folder / found[-1].outputs).exists() else None

    def add(self, cell: Cell, *, outputs: NDArray[Any]) -> None:
        """Logits first, then the line: a line without its logits cannot be."""
        np.save(self.folder / cell.outputs, outputs)
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(("\n" if torn else "") + json.dumps(to_mapping(cell)) + "\n")
        self._keep(cell)

    def outputs(self, cell: Cell) -> NDArray[Any]:
        """Test logits of a finished cell (n c)."""
        return np.load(self.folder / cell.outputs)

    def _keep(self, cell: Cell) -> None:
        key = (cell.case, cell.system, cell.seed, cell.settings)
        self._cells.pop(key, None)  # the last to come stands last
        self._cells[key] = cell


def settings_digest(body: dict[str, Any]) -> str:
    """16 hex digits of the SHA-256 of a JSON object: equal settings, equal digest."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def file_name(*words: str | int) -> str:
    """A plain file name of these words."""
    return "--".join(str(word) for word in words).replace(">", "-to-").replace("/", "-at-")


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None
