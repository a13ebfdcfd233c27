"""Turns decoded pixels into frames that a viewer shows as they are: 8 or 16 bit grey with slope and window, or RGB."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, iter_pixels
from pydicom.pixels.processing import apply_voi

_SAMPLE = 50_000
_SAMPLED_FRAMES = 32
_LARGEST = 65_535
_ABSURD = 1e9
Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A way to show values: `function` as in PS3.3 C.11.2.1.3 (LINEAR, LINEAR_EXACT, SIGMOID)."""

    center: float
    width: float
    name: str = ""
    function: str = "LINEAR"


@dataclass(frozen=True, kw_only=True, slots=True)
class Display:
    """What was written: frames one after another, little endian. Value = stored x slope + intercept."""

    frames: int
    bits: int
    signed: bool
    samples: int
    slope: float
    intercept: float
    low: float
    high: float
    windows: tuple[Window, ...]
    windows_from_file: bool


def display_write(dataset: Dataset, *, folder: Path, frames: int) -> Display:
    """Write `frames.raw` and `thumb.png` into the folder. Raises whatever pydicom raises on pixels it cannot decode."""
    grey = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2").strip() in ("MONOCHROME1", "MONOCHROME2")
    shown = _write_grey(dataset, folder, frames) if grey else _write_colour(dataset, folder, frames)
    _write_thumb(dataset, shown, folder)
    return shown


def windowed(values: Array, window: Window) -> NDArray[np.float64]:
    """Values to 0..1 through a window, as PS3.3 C.11.2.1.2 and C.11.2.1.3 define it."""
    x = values.astype(np.float64)
    if window.function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (x - window.center) / window.width))
    if window.function == "LINEAR_EXACT":
        return np.clip((x - window.center) / window.width + 0.5, 0, 1)
    return np.clip((x - (window.center - 0.5)) / max(window.width - 1, 1e-9) + 0.5, 0, 1)


def _write_grey(dataset: Dataset, folder: Path, frames: int) -> Display:
    scales = _scales(dataset, frames)
    source = _Values(dataset, scales)
    plain = source.keeps_stored_values()
    low, high, sample = _survey(source, frames)
    if plain:
        slope, intercept = scales[0]
    else:
        slope = 1.0 if source.whole_numbers and high - low <= _LARGEST else (high - low) / _LARGEST or 1.0
        intercept = low
    bits, signed = 16, False
    with (folder / "frames.raw").open("wb") as out:
        for raw, value in source:
            if plain:
                kind = raw.dtype
                bits, signed = (8 if kind.itemsize == 1 and kind.kind == "u" else 16), kind.kind == "i"
                stored = raw.astype("u1" if bits == 8 else "<i2" if signed else "<u2")
            else:
                clean = np.nan_to_num(value, nan=low, posinf=high, neginf=low)
                stored = np.clip(np.rint((clean - intercept) / slope), 0, _LARGEST).astype("<u2")
            out.write(stored.tobytes())
    windows = [window for window in _windows(dataset) if not _absurd(window, low, high)]
    if source.voi_baked:
        windows = []
    return Display(
        frames=frames, bits=bits, signed=signed, samples=1, slope=slope, intercept=intercept, low=low, high=high,
        windows=tuple(windows) or (_window_of(sample, low, high, baked=source.voi_baked),),
        windows_from_file=bool(windows),
    )  # fmt: skip


def _write_colour(dataset: Dataset, folder: Path, frames: int) -> Display:
    palette = str(dataset.get("PhotometricInterpretation")).strip() == "PALETTE COLOR"
    with (folder / "frames.raw").open("wb") as out:
        for frame in iter_pixels(dataset):
            values = apply_color_lut(frame, dataset) if palette else frame
            bits = _colour_bits(dataset, palette)
            eight = values if bits == 8 else np.right_shift(values.astype(np.uint64), bits - 8)
            out.write(np.clip(eight[..., :3], 0, 255).astype(np.uint8).tobytes())
    return Display(
        frames=frames, bits=8, signed=False, samples=3, slope=1.0, intercept=0.0, low=0.0, high=255.0,
        windows=(Window(center=128.0, width=256.0, name="as sent"),), windows_from_file=False,
    )  # fmt: skip


def _colour_bits(dataset: Dataset, palette: bool) -> int:
    if not palette:
        return int(dataset.get("BitsStored") or dataset.BitsAllocated)
    descriptor = dataset.get("RedPaletteColorLookupTableDescriptor")
    return 8 if descriptor is not None and int(descriptor[2]) == 8 else 16


class _Values:
    """The frames of a grey image, each as stored and as value after the modality transformation."""

    def __init__(self, dataset: Dataset, scales: list[tuple[float, float]]) -> None:
        self._dataset = dataset
        self._scales = scales
        self._lut = "ModalityLUTSequence" in dataset and len(dataset.ModalityLUTSequence) > 0
        has_window = dataset.get("WindowCenter") not in (None, "")
        self.voi_baked = bool(dataset.get("VOILUTSequence")) and not has_window
        self._integer = "PixelData" in dataset
        one_scale = len(set(scales)) == 1
        self.whole_numbers = self._integer and one_scale and scales[0][0] == 1 and scales[0][1] == int(scales[0][1])

    def keeps_stored_values(self) -> bool:
        """Whether stored values go out unchanged: whole numbers of at most 16 bits under one slope, no table."""
        narrow = self._integer and int(self._dataset.BitsAllocated) <= 16
        return narrow and len(set(self._scales)) == 1 and not self._lut and not self.voi_baked

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        for index, raw in enumerate(iter_pixels(self._dataset)):
            if raw.dtype.kind == "i" and raw.dtype.itemsize == 1:
                raw = raw.astype(np.int16)
            slope, intercept = self._scales[min(index, len(self._scales) - 1)]
            if self._lut:
                value = apply_modality_lut(raw, self._dataset)
            else:
                value = raw if (slope, intercept) == (1, 0) else raw * np.float64(slope) + intercept
            if self.voi_baked:
                value = apply_voi(value, self._dataset)
            yield raw, value


def _scales(dataset: Dataset, frames: int) -> list[tuple[float, float]]:
    """Slope and intercept of each frame: at the top, else in the functional groups (PS3.3 C.7.6.16.2.9)."""
    if dataset.get("RescaleSlope") not in (None, "") or "PerFrameFunctionalGroupsSequence" not in dataset:
        return [_scale(dataset)]
    shared = _group(dataset, "SharedFunctionalGroupsSequence", 0, "PixelValueTransformationSequence")
    if shared is not None:
        return [_scale(shared)]
    found = [
        _group(dataset, "PerFrameFunctionalGroupsSequence", index, "PixelValueTransformationSequence")
        for index in range(frames)
    ]
    return [(1.0, 0.0) if item is None else _scale(item) for item in found]


def _scale(item: Dataset) -> tuple[float, float]:
    slope, intercept = _number(item.get("RescaleSlope")), _number(item.get("RescaleIntercept"))
    return (slope if slope else 1.0), (intercept or 0.0)  # slope 0 would make every value the same: not believed


def _group(dataset: Dataset, sequence: str, index: int, macro: str) -> Dataset | None:
    try:
        return dataset[sequence].value[index][macro].value[0]
    except (KeyError, IndexError, TypeError):
        return None


def _windows(dataset: Dataset) -> list[Window]:
    item = dataset
    if dataset.get("WindowCenter") in (None, ""):
        item = (
            _group(dataset, "SharedFunctionalGroupsSequence", 0, "FrameVOILUTSequence")
            or _group(dataset, "PerFrameFunctionalGroupsSequence", 0, "FrameVOILUTSequence")
            or Dataset()
        )
    centers, widths = _many(item.get("WindowCenter")), _many(item.get("WindowWidth"))
    names = [str(name) for name in _list(item.get("WindowCenterWidthExplanation"))]
    function = str(item.get("VOILUTFunction") or "LINEAR").strip().upper()
    found: list[Window] = []
    for index, (center, width) in enumerate(zip(centers, widths, strict=False)):
        if center is None or width is None:
            continue
        name = names[index][:40] if index < len(names) else ""
        if function == "LINEAR" and 0 < width <= 1:  # LINEAR subtracts 1 from the width: meant is the exact one
            function = "LINEAR_EXACT"
        known = function if function in ("LINEAR", "LINEAR_EXACT", "SIGMOID") else "LINEAR"
        window = Window(center=center, width=width, name=name, function=known)
        if (center, width) not in {(one.center, one.width) for one in found}:
            found.append(window)
    return found[:8]


def _absurd(window: Window, low: float, high: float) -> bool:
    """A window that no number can be (width 0 or less, huge) or that would show the whole picture black or white."""
    if window.width <= 0:
        return True
    if abs(window.center) > _ABSURD or window.width > _ABSURD:
        return True
    return window.center + window.width / 2 <= low or window.center - window.width / 2 >= high


def _survey(source: _Values, frames: int) -> tuple[float, float, NDArray[np.float64]]:
    """Smallest and largest value of all frames, and a sample of values for a window."""
    padding = _number(source._dataset.get("PixelPaddingValue"))
    low, high, parts = math.inf, -math.inf, []
    step = max(1, frames // _SAMPLED_FRAMES)
    for index, (raw, value) in enumerate(source):
        finite = value[np.isfinite(value)] if value.dtype.kind == "f" else value.reshape(-1)
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        if index % step == 0:
            kept = value[raw != padding] if padding is not None and raw.dtype.kind in "iu" else finite
            parts.append(kept.reshape(-1)[:: max(1, kept.size // _SAMPLE)].astype(np.float64))
    if low > high:
        low, high = 0.0, 0.0
    sample = np.concatenate(parts) if parts else np.zeros(0)
    return low, high, sample[np.isfinite(sample)]


def _window_of(sample: NDArray[np.float64], low: float, high: float, *, baked: bool) -> Window:
    """A window from the pixels: all values of a small range, else all but the outermost half percent."""
    if sample.size and not baked and high - low > 255:
        low, high = (float(part) for part in np.percentile(sample, [0.5, 99.5]))
    if high <= low:
        low, high = low - 0.5, low + 0.5
    return Window(center=(low + high) / 2, width=high - low, name="from the pixels", function="LINEAR_EXACT")


def _write_thumb(dataset: Dataset, shown: Display, folder: Path) -> None:
    from PIL import Image

    rows, columns = int(dataset.Rows), int(dataset.Columns)
    kind = "u1" if shown.bits == 8 else "<i2" if shown.signed else "<u2"
    with (folder / "frames.raw").open("rb") as file:
        first = np.fromfile(file, dtype=kind, count=rows * columns * shown.samples)
    if shown.samples == 3:
        picture = Image.fromarray(first.reshape(rows, columns, 3).astype(np.uint8))
    else:
        step = max(1, max(rows, columns) // 384)
        small = first.reshape(rows, columns)[::step, ::step]
        grey = windowed(small * shown.slope + shown.intercept, shown.windows[0])
        if str(dataset.get("PhotometricInterpretation")).strip() == "MONOCHROME1":
            grey = 1 - grey
        picture = Image.fromarray(np.rint(grey * 255).astype(np.uint8))
    picture.thumbnail((128, 128))
    picture.save(folder / "thumb.png")


def _many(value: object) -> list[float | None]:
    return [_number(one) for one in _list(value)]


def _list(value: object) -> list[object]:
    if value is None or value == "":
        return []
    return list(value) if not isinstance(value, str | float | int) and hasattr(value, "__iter__") else [value]


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
