"""Model artifacts: a folder of safetensors, card and manifest.json, named by the SHA-256 digest of its manifest."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_core.contracts import ModelDescription, ModelKind
from ml_core.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
CARD = "card.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of an artifact: SHA-256 (64 hex) and size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What manifest.json says. `tied` maps the name of a tensor that shares memory to the name that is stored."""

    format: int
    digest: str
    kind: ModelKind
    name: str
    recipe: str
    created: str
    git_revision: str
    parameters: int
    config: dict[str, Any]
    metrics: dict[str, float]
    data_digest: str
    teacher_digest: str
    licence: str
    files: dict[str, FileEntry]
    tied: dict[str, str] = field(default_factory=dict)


def write(
    folder: Path | str,
    *,
    kind: ModelKind,
    name: str,
    recipe: str,
    config: Mapping[str, Any],
    tensors: "Mapping[str, Tensor]",
    metrics: Mapping[str, float],
    data_digest: str,
    teacher_digest: str,
    parameters: int,
    licence: str,
    card: str,
    extra_files: Mapping[str, bytes] | None = None,
    created: datetime | None = None,
) -> ModelDescription:
    """Write an artifact to `folder`, whole or not at all; an artifact that is there already is replaced.

    Tensors that share memory exactly (tied weights) are stored once. Raises ArtifactError when `folder` holds
    something that is not an artifact, or when a name in `extra_files` is not a plain file name.
    """
    from safetensors.torch import save

    kept, tied = _without_aliases(tensors)
    contents = {WEIGHTS: save(kept), CARD: card.encode()}
    for extra, content in (extra_files or {}).items():
        if Path(extra).name != extra or extra.startswith(".") or extra in {WEIGHTS, CARD, MANIFEST}:
            raise ArtifactError(f"extra_files: {extra!r} is not a free plain file name")
        contents[extra] = content
    body: dict[str, Any] = {
        "format": FORMAT,
        "kind": ModelKind(kind).value,
        "name": name,
        "recipe": recipe,
        "created": (created or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "git_revision": _git_revision(),
        "parameters": parameters,
        "config": dict(config),
        "metrics": {key: float(value) for key, value in metrics.items()},
        "data_digest": data_digest,
        "teacher_digest": teacher_digest,
        "licence": licence,
        "files": {
            key: {"sha256": hashlib.sha256(value).hexdigest(), "bytes": len(value)} for key, value in contents.items()
        },
        "tied": tied,
    }
    contents[MANIFEST] = json.dumps({"digest": manifest_digest(body), **body}, indent=1, sort_keys=True).encode()
    _write_whole(Path(folder), contents=contents)
    return describe(folder)


def read(folder: Path | str) -> Manifest:
    """Read and verify: the manifest against its own digest and every file against the manifest. No torch."""
    root = Path(folder)
    try:
        body = json.loads((root / MANIFEST).read_bytes())
        digest = body.pop("digest")
    except FileNotFoundError:
        raise ArtifactError(f"{root} holds no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ArtifactError(f"{root / MANIFEST} cannot be read: {error!r}") from error
    if manifest_digest(body) != digest:
        raise ArtifactError(f"{root / MANIFEST} does not match its digest {digest}")
    if body.get("format") != FORMAT:
        raise ArtifactError(f"{root / MANIFEST} has format {body.get('format')!r}, expected {FORMAT}")
    try:
        files = {key: FileEntry(**entry) for key, entry in body.pop("files").items()}
        manifest = Manifest(digest=digest, kind=ModelKind(body.pop("kind")), files=files, **body)
    except (TypeError, ValueError, KeyError) as error:
        raise ArtifactError(f"{root / MANIFEST} is incomplete: {error!r}") from error
    for key, entry in files.items():
        _verify(root / key, entry=entry)
    return manifest


def describe(folder: Path | str) -> ModelDescription:
    """The manifest of `folder` as the border contract, verified; loads no weights."""
    manifest = read(folder)
    return ModelDescription(
        kind=manifest.kind,
        digest=manifest.digest,
        folder=str(folder),
        name=manifest.name,
        recipe=manifest.recipe,
        created=manifest.created,
        parameters=manifest.parameters,
        size_bytes=sum(entry.bytes for entry in manifest.files.values()),
        teacher_digest=manifest.teacher_digest,
        data_digest=manifest.data_digest,
        git_revision=manifest.git_revision,
        licence=manifest.licence,
        metrics=manifest.metrics,
        card=(Path(folder) / CARD).read_text(),
    )


def load_tensors(folder: Path | str) -> "dict[str, Tensor]":
    """The tensors by name, on the CPU, digest verified; tied names come back as one tensor."""
    from safetensors.torch import load

    manifest = read(folder)
    tensors = load((Path(folder) / WEIGHTS).read_bytes())
    return tensors | {alias: tensors[name] for alias, name in manifest.tied.items()}


def manifest_digest(body: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a manifest without its own digest (sorted keys, no spaces, UTF-8)."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_digest(path: Path | str) -> str:
    """SHA-256 of a file, read in chunks: what recipes record of their data."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _without_aliases(tensors: "Mapping[str, Tensor]") -> "tuple[dict[str, Tensor], dict[str, str]]":
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first_at: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        place = (
            tensor.untyped_storage().data_ptr(),
            tensor.storage_offset(),
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
        )
        if tensor.numel() and place in first_at:
            tied[name] = first_at[place]
            continue
        first_at[place] = name
        # clone: safetensors refuses views that overlap without being equal
        kept[name] = tensor.detach().cpu().contiguous().clone()
    return kept, tied


def _write_whole(folder: Path, *, contents: Mapping[str, bytes]) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise ArtifactError(f"{folder} exists and is not an artifact")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, body in contents.items():
        (partial / name).write_bytes(body)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def _verify(path: Path, *, entry: FileEntry) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing") from None
    if size != entry.bytes or file_digest(path) != entry.sha256:
        raise ArtifactError(f"{path} does not match its digest")


def _git_revision() -> str:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()
