"""The child process that reads uploads: one JSON request a line on stdin, one JSON answer a line on stdout.

Everything that hostile bytes can reach (parsing, inflating, decoding) happens here, under a limit of memory that this
process sets for itself and a limit of time that its parent keeps. Run: `python -m apps.radiology.rules.decoder`.
"""

import json
import os
import resource
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from apps.radiology.rules.dicom_header import (
    NotDisplayableError,
    RefusedError,
    has_pixels,
    header_read,
)
from apps.radiology.rules.display import display_write
from apps.radiology.rules.limits import Limits, size_words
from apps.radiology.rules.pixel_claims import claims_check


def examine(path: Path, *, folder: Path, limits: Limits) -> dict[str, Any]:
    """Judge one file and write its display frames into `folder`.

    The answer has `status` (`displayable`, `not_displayable` or `refused`), `reason`, and what was learned: `header`,
    `claims`, `display` (None where it did not come so far).
    """
    answer: dict[str, Any] = {"status": "refused", "reason": "", "header": None, "claims": None, "display": None}
    try:
        if path.stat().st_size > limits.file_bytes:
            raise RefusedError(f"larger than {size_words(limits.file_bytes)}")
        dataset, header, marked = header_read(path.read_bytes())
        answer["header"] = asdict(header)
        answer["status"] = "not_displayable"
        if not marked:
            raise NotDisplayableError(f"no file header, so no transfer syntax ({header.sop_class_name})")
        if not has_pixels(dataset):
            raise NotDisplayableError(f"no pixel data ({header.sop_class_name})")
        claims = claims_check(dataset, header.transfer_syntax, limits)
        answer["claims"] = asdict(claims)
        answer["display"] = asdict(_decoded(dataset, folder, claims.frames, header.transfer_syntax_name))
        answer["status"] = "displayable"
    except RefusedError as error:
        answer.update(status="refused", reason=str(error))
    except NotDisplayableError as error:
        answer["reason"] = str(error)
    except MemoryError:
        answer.update(status="refused", reason=f"it needs more memory than {size_words(limits.memory_bytes)}")
    return answer


def _decoded(dataset: Any, folder: Path, frames: int, syntax_name: str) -> Any:
    compressed = dataset.file_meta.TransferSyntaxUID.is_encapsulated
    try:
        return display_write(dataset, folder=folder, frames=frames)
    except MemoryError:
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:160]
        if compressed:
            raise NotDisplayableError(f"stored, cannot be shown: {syntax_name} could not be decoded") from error
        raise RefusedError(f"the pixel data cannot be read: {words}") from error


def main() -> None:
    """Serve requests until stdin ends."""
    warnings.simplefilter("ignore")
    limits = Limits(**json.loads(sys.argv[1])) if len(sys.argv) > 1 else Limits()
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what C libraries print must not get between the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = examine(Path(request["path"]), folder=Path(request["folder"]), limits=limits)
        except Exception as error:  # noqa: BLE001  a fault of ours must name the file, not end the batch
            answer = {"status": "refused", "reason": f"it cannot be read ({type(error).__name__})", "header": None}
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
