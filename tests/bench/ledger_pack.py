"""A --work folder of `bench distill` without what only training needs: cells, test logits, what teachers said, logs.

ledger_pack WORK FILE [--cases WORD]. Of logits over more than two classes only the place of the largest is kept, which
is all that the metrics of such tasks read; trials of tuning keep their line and no logits. No weights: rows need none.
"""

import argparse
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_LOG_BYTES = 20_000
_TRIAL = "tune--"
_OF_LABELS = {"accuracy", "in-scope accuracy", "out-of-scope recall", "f1", "matthews"}  # read the largest logit alone


def main() -> int:
    """Write FILE (tar, gzip)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--cases", default="", help="only those whose names hold this: files may have to be small")
    options = parser.parse_args()
    print(f"{pack(options.work, options.file, cases=options.cases)} cells, {options.file.stat().st_size} bytes")
    return 0


def pack(work: Path, file: Path, *, cases: str = "") -> int:
    """Returns the number of cells that are in; lines torn or without their logits are not."""
    lines = []
    with tarfile.open(file, "w:gz") as out:

        def add(name: str, data: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            out.addfile(entry, io.BytesIO(data))

        for line in (work / "cells.jsonl").read_text().splitlines():
            try:
                cell = json.loads(line)
            except ValueError:
                continue
            if cases not in cell["case"]:
                continue
            if cell["system"].startswith(_TRIAL):
                lines.append(line)
            elif (work / cell["outputs"]).exists():
                add(cell["outputs"], _small(work / cell["outputs"], metrics=cell["values"]))
                lines.append(line)
        add("cells.jsonl", "".join(f"{line}\n" for line in lines).encode())
        for path in sorted(work.glob("teachers/*/test-logits-*.npy")):
            said = json.loads(
                path.with_name(path.name.replace("test-logits", "values")).with_suffix(".json").read_text()
            )
            add(str(path.relative_to(work)), _small(path, metrics=said["values"]["test"]))
        for path in sorted([*work.glob("tuned.json"), *work.glob("teachers/*/values-*.json"), *work.glob("log/*")]):
            add(str(path.relative_to(work)), path.read_bytes()[-_LOG_BYTES:])
    return len(lines)


def _small(path: Path, *, metrics: Iterable[str]) -> bytes:
    logits = np.load(path)
    if set(metrics) <= _OF_LABELS and logits.shape[1] > 2:
        logits = (np.arange(logits.shape[1])[None, :] == logits.argmax(1)[:, None]).astype(np.int8)
    stream = io.BytesIO()
    np.save(stream, logits)
    return stream.getvalue()


if __name__ == "__main__":
    raise SystemExit(main())
