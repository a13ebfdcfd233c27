"""Teacher features on disk: int8 levels with one scale a token, in safetensors shards beside a manifest."""

import bisect
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ml_core.config import from_mapping, to_mapping
from ml_core.distill.features import Features, HeadTaps
from ml_core.errors import ArtifactError, InputError

MANIFEST = "manifest.json"
FORMAT = 1
_LEVELS = 127.0
_TINY = 1e-12
_OPEN_SHARDS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One file: its name, the rows [start, stop) that it holds, and its SHA-256 and size."""

    file: str
    start: int
    stop: int
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheManifest:
    """What manifest.json says: whose features these are, of which data, and which shards are written."""

    format: int
    teacher: str
    data: str
    examples: int
    shard_rows: int
    layers: int = 0
    heads: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    masked: bool = False
    logits: bool = False
    shards: tuple[Shard, ...] = ()


class TeacherCache:
    """Features of `examples` rows by one teacher (its digest) of one data set (its digest) in a folder.

    Padding is not stored. Tokens are divided by the root of each channel's root mean square within the shard, then
    rounded to 127 levels of the token's own scale: a channel that dwarfs all others, as language models have them, does
    not blur the rest, nor they it. Logits are float16. Size: one byte a number, two bytes a token, four bytes a channel
    and shard. Raises ArtifactError where the folder holds another teacher's, other data's or damaged features.
    """

    def __init__(self, folder: Path | str, *, teacher: str, data: str, examples: int, shard_rows: int = 512) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = CacheManifest(format=FORMAT, teacher=teacher, data=data, examples=examples, shard_rows=shard_rows)
        path = self.folder / MANIFEST
        self.manifest = _opened(path, wanted=wanted) if path.exists() else wanted
        self._open: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    @property
    def rows_done(self) -> int:
        """How many rows are on disk, from the first."""
        return self.manifest.shards[-1].stop if self.manifest.shards else 0

    def fill(self, show: Callable[[range], Features], *, on_shard: Callable[[int, int], None] | None = None) -> None:
        """Write what is missing; `show` gives the teacher's features of a range of rows (at most shard_rows).

        Cut off at any moment and called again it goes on behind the last whole shard. on_shard: called with (rows done,
        rows) after each.
        """
        while (start := self.rows_done) < self.manifest.examples:
            rows = range(start, min(start + self.manifest.shard_rows, self.manifest.examples))
            with torch.no_grad():
                self._write(rows, shown=show(rows).detach())
            if on_shard is not None:
                on_shard(self.rows_done, self.manifest.examples)

    def read(self, rows: Sequence[int], *, n: int | None = None, device: torch.device | str = "cpu") -> Features:
        """The features of these rows, in this order, in single precision; padded to `n` tokens or the longest row.

        Padding is zero and always at the end. Raises InputError for rows that are not there or longer than n.
        """
        if bad := [row for row in rows if not 0 <= row < self.rows_done]:
            raise InputError(f"rows: {bad[:5]} are not in the cache of {self.rows_done} rows")
        starts = [shard.start for shard in self.manifest.shards]
        places = [(bisect.bisect_right(starts, row) - 1, row) for row in rows]
        lengths = [self._length(shard, row) for shard, row in places]
        n = n or max(lengths)
        if max(lengths) > n:
            raise InputError(f"n: {n} is below the longest row's {max(lengths)} tokens")
        mask = torch.arange(n)[None, :] < torch.tensor(lengths)[:, None]
        tokens = {name: self._tokens(name, places, mask=mask, device=device) for name in self._names()}
        return Features(
            layers=tuple(tokens[f"layer.{index}"] for index in range(self.manifest.layers)),
            pooled=self._whole("pooled", places, device=device),
            mask=mask.to(device) if self.manifest.masked else None,
            logits=self._plain_rows("logits", places, device=device) if self.manifest.logits else None,
            heads=tuple(
                HeadTaps(name=name, **{part: tokens[f"head.{index}.{part}"] for part in "qkv"})
                for index, name in enumerate(self.manifest.heads)
            ),
            names=self.manifest.names,
        )

    def verify(self) -> None:
        """Read every shard against its digest. Raises ArtifactError."""
        for shard in self.manifest.shards:
            path = self.folder / shard.file
            if not path.exists() or _sha256(path) != shard.sha256:
                raise ArtifactError(f"{path} is missing or does not match its digest")

    def size_bytes(self) -> int:
        """Bytes on disk, manifest included."""
        return sum(shard.bytes for shard in self.manifest.shards) + (self.folder / MANIFEST).stat().st_size

    def _write(self, rows: range, *, shown: Features) -> None:
        if shown.pooled.shape[0] != len(rows):
            raise InputError(f"show: {shown.pooled.shape[0]} rows for {len(rows)}")
        about = {
            "layers": len(shown.layers),
            "heads": tuple(taps.name for taps in shown.heads),
            "names": shown.names,
            "masked": shown.mask is not None,
            "logits": shown.logits is not None,
        }
        manifest = replace(self.manifest, **about)
        if self.manifest.shards and manifest != self.manifest:
            raise InputError("show: the features are of another form than those already written")
        name = f"rows-{rows.start:09d}.safetensors"
        partial = self.folder / f".{name}.partial"
        save_file(_encoded(shown), partial)
        shard = Shard(
            file=name, start=rows.start, stop=rows.stop, sha256=_sha256(partial), bytes=partial.stat().st_size
        )
        partial.replace(self.folder / name)
        self.manifest = replace(manifest, shards=(*self.manifest.shards, shard))
        _write_json(self.folder / MANIFEST, body=to_mapping(self.manifest))

    def _shard(self, index: int) -> dict[str, Tensor]:
        name = self.manifest.shards[index].file
        if name not in self._open:
            self._open[name] = load_file(self.folder / name)
        self._open.move_to_end(name)
        while len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return self._open[name]

    def _names(self) -> list[str]:
        heads = [f"head.{index}.{part}" for index in range(len(self.manifest.heads)) for part in "qkv"]
        return [f"layer.{index}" for index in range(self.manifest.layers)] + heads

    def _span(self, shard: int, row: int) -> tuple[int, int]:
        ends, at = self._shard(shard)["ends"], row - self.manifest.shards[shard].start
        return (int(ends[at - 1]) if at else 0), int(ends[at])

    def _length(self, shard: int, row: int) -> int:
        begin, end = self._span(shard, row)
        return end - begin

    def _tokens(
        self, name: str, places: list[tuple[int, int]], *, mask: Tensor, device: torch.device | str
    ) -> Float[Tensor, "b n d"]:
        parts = []
        for shard, row in places:
            begin, end = self._span(shard, row)
            stored = self._shard(shard)
            parts.append((stored[f"{name}.levels"][begin:end], stored[f"{name}.scale"][begin:end], shard))
        channels = {shard: self._shard(shard)[f"{name}.channels"].to(device) for shard, _ in places}
        levels = torch.cat([part[0] for part in parts]).to(device)
        scale = torch.cat([part[1] for part in parts]).to(device)
        flat = levels.float() * scale.float()[:, None]
        sizes = [len(part[0]) for part in parts]
        flat = torch.cat([x * channels[part[2]] for x, part in zip(flat.split(sizes), parts, strict=True)])
        out = flat.new_zeros((*mask.shape, flat.shape[-1]))
        out[mask.to(device)] = flat
        return out

    def _whole(self, name: str, places: list[tuple[int, int]], *, device: torch.device | str) -> Float[Tensor, "b p"]:
        rows = []
        for shard, row in places:
            stored, at = self._shard(shard), row - self.manifest.shards[shard].start
            scale = stored[f"{name}.scale"][at].float()
            rows.append(stored[f"{name}.levels"][at].float() * scale * stored[f"{name}.channels"])
        return torch.stack(rows).to(device)

    def _plain_rows(self, name: str, places: list[tuple[int, int]], *, device: torch.device | str) -> Tensor:
        rows = [self._shard(shard)[name][row - self.manifest.shards[shard].start] for shard, row in places]
        return torch.stack(rows).to(device).float()


def int8_encode(
    tokens: Float[Tensor, "m d"],
) -> tuple[Int8[Tensor, "m d"], Float[Tensor, " m"], Float[Tensor, " d"]]:
    """Levels, one float16 scale a token, one float32 scale a channel: tokens ≈ levels · scale · channel."""
    x = tokens.float()
    # half of the spread (SmoothQuant's α = ½): the whole of it would blur a large channel wherever it is small
    channels = x.pow(2).mean(0).clamp_min(_TINY).pow(0.25)
    x = x / channels
    # the stored scale is the one that the levels are made with, so that its rounding is no error
    scale = (x.abs().amax(1) / _LEVELS).clamp_min(1e-7).half()
    levels = torch.round(x / scale.float()[:, None]).clamp_(-_LEVELS, _LEVELS).to(torch.int8)
    return levels, scale, channels


def module_digest(module: nn.Module) -> str:
    """SHA-256 over a module's names, dtypes, shapes and values: which teacher made these features."""
    digest = hashlib.sha256(type(module).__name__.encode())
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}/{value.dtype}/{tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _encoded(shown: Features) -> dict[str, Tensor]:
    b, n = shown.layers[0].shape[:2]
    real = torch.ones(b, n, dtype=torch.bool) if shown.mask is None else shown.mask.cpu()
    _check_padding_last(real)
    tensors = {"ends": real.sum(1).cumsum(0)}
    tokens = {f"layer.{index}": layer for index, layer in enumerate(shown.layers)}
    for index, taps in enumerate(shown.heads):
        tokens |= {f"head.{index}.q": taps.q, f"head.{index}.k": taps.k, f"head.{index}.v": taps.v}
    flat = {name: x[real.to(x.device)] for name, x in tokens.items()} | {"pooled": shown.pooled}
    for name, x in flat.items():
        parts = int8_encode(x.float())
        tensors |= {
            f"{name}.{key}": part.cpu() for key, part in zip(("levels", "scale", "channels"), parts, strict=True)
        }
    if shown.logits is not None:
        tensors["logits"] = shown.logits.cpu().half()
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _check_padding_last(real: Tensor) -> None:
    if bool((real[:, 1:] & ~real[:, :-1]).any()):
        raise InputError("mask: padding must be at the end of a row")


def _opened(path: Path, *, wanted: CacheManifest) -> CacheManifest:
    try:
        found = from_mapping(CacheManifest, json.loads(path.read_text()))
    except (ValueError, InputError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    for field in ("format", "teacher", "data", "examples"):
        if _field(found, field) != _field(wanted, field):
            raise ArtifactError(f"{path} is of {field} {_field(found, field)!r}, not of {_field(wanted, field)!r}")
    for shard in found.shards:
        file = path.with_name(shard.file)
        if not file.exists() or file.stat().st_size != shard.bytes:
            raise ArtifactError(f"{file} is missing or has another size than written")
    return found


def _field(manifest: CacheManifest, name: str) -> Any:
    return to_mapping(manifest)[name]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_json(path: Path, *, body: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(body, indent=1))
    os.replace(partial, path)
