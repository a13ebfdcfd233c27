"""Small real artifacts: a manifest with true digests over bytes that no engine would load as weights."""

import hashlib
import json
from pathlib import Path

from ml_core import artifacts
from ml_core.contracts import ModelKind


def artifact_make(
    folder: Path,
    *,
    kind: ModelKind = ModelKind.FRAUD,
    name: str = "small student",
    weights: bytes = b"weights",
    metrics: dict[str, float] | None = None,
) -> str:
    """Write an artifact into `folder` and return its digest; other `weights` give another digest."""
    folder.mkdir(parents=True)
    contents = {artifacts.WEIGHTS: weights, artifacts.CARD: f"# {name}\n\nTrained for a test.\n".encode()}
    body = {
        "format": artifacts.FORMAT,
        "kind": kind.value,
        "name": name,
        "recipe": "fraud_dfad_small",
        "created": "2026-01-02T03:04:05Z",
        "git_revision": "0" * 40,
        "parameters": 12345,
        "config": {"d": 64},
        "metrics": metrics or {"ap": 0.7, "auc": 0.9},
        "data_digest": "d" * 64,
        "teacher_digest": "e" * 64,
        "licence": "Apache-2.0",
        "files": {
            key: {"sha256": hashlib.sha256(value).hexdigest(), "bytes": len(value)} for key, value in contents.items()
        },
        "tied": {},
    }
    digest = artifacts.manifest_digest(body)
    contents[artifacts.MANIFEST] = json.dumps({"digest": digest, **body}).encode()
    for key, value in contents.items():
        (folder / key).write_bytes(value)
    return digest
