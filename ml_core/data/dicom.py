"""Bytes of a DICOM file, PNG or JPEG to the grey picture that the model sees: float32 in [0, 1], bone bright."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ml_core.errors import ImageError

Grey = NDArray[np.float32]

SIMULATOR = "Assay simulator"  # the Manufacturer of films that data/phantom_dicom.py writes

_MAX_PIXELS = 64 * 1024 * 1024  # of the one frame that is decoded
_MAX_INFLATED = 1024 * 1024 * 1024
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


def image_read(encoded: bytes) -> Grey:
    """Decode the first frame of `encoded`: modality LUT, window or VOI LUT, MONOCHROME1 turned round, colours to grey.

    Raises ImageError, with the reason, for anything that cannot be shown; sizes are checked before anything is decoded.
    """
    if encoded[128:132] == b"DICM" or _headless_dicom(encoded):
        return _read_dicom(encoded)
    if encoded.startswith((_PNG, _JPEG)):
        return _read_picture(encoded)
    raise ImageError("this is not a DICOM, PNG or JPEG file")


def is_simulated(encoded: bytes) -> bool:
    """Whether a file that `image_read` can read says that our simulator made it; PNG and JPEG say nothing."""
    marked = encoded[128:132] == b"DICM"
    if not marked and not _headless_dicom(encoded):
        return False
    from pydicom import dcmread

    header = dcmread(io.BytesIO(encoded), force=not marked, stop_before_pixels=True, specific_tags=["Manufacturer"])
    return header.get("Manufacturer") == SIMULATOR


def _headless_dicom(encoded: bytes) -> bool:
    """Whether the bytes begin with a plain little-endian data set (group 0002 or 0008, a known start)."""
    if len(encoded) < 8:
        return False
    group, element, length = struct.unpack("<HHI", encoded[:8])
    explicit = encoded[4:6].isalpha() and encoded[4:6].isupper()
    return group in (2, 8) and element < 0x100 and (explicit or length < len(encoded))


def _read_picture(encoded: bytes) -> Grey:
    try:
        with Image.open(io.BytesIO(encoded), formats=["PNG", "JPEG"]) as picture:
            width, height = picture.size
            if width * height > _MAX_PIXELS:
                raise ImageError(f"the picture says {width} x {height} pixels, more than can be shown")
            if encoded.startswith(_PNG) and width * height > 1100 * 8 * len(encoded):  # deflate packs at most 1032 : 1
                raise ImageError(f"the picture says {width} x {height} pixels, more than its bytes can hold")
            picture.load()
            deep = picture.mode in ("I", "I;16", "I;16B", "I;16L", "F")
            pixels = np.asarray(picture if deep else picture.convert("RGB"), dtype=np.float32)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"the picture cannot be decoded: {error}") from error
    return np.clip(pixels / 65535, 0, 1) if deep else _grey(pixels / 255)


def _read_dicom(encoded: bytes) -> Grey:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    _check_inflation(encoded)
    try:
        dataset = dcmread(io.BytesIO(encoded), force=encoded[128:132] != b"DICM")
        _check_header(dataset)
        frame = _decode(dataset)
        return _present(dataset, frame)
    except ImageError:
        raise
    except (InvalidDicomError, AttributeError, KeyError, ValueError, TypeError, NotImplementedError, RuntimeError,
            OSError, EOFError, IndexError, OverflowError, struct.error, zlib.error, MemoryError) as error:  # fmt: skip
        raise ImageError(f"the DICOM object cannot be shown: {_one_line(error)}") from error


def _check_inflation(encoded: bytes) -> None:
    """A deflated data set must not grow without end; the transfer syntax stands in the plain file header."""
    at = encoded.find(_DEFLATED.encode(), 132, 2048)
    if at < 0:
        return
    start = _header_end(encoded)
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    total, feed = 0, encoded[start:]
    while feed and not engine.eof:
        try:
            total += len(engine.decompress(feed, 1 << 24))
        except zlib.error as error:
            raise ImageError("the deflated data set is damaged") from error
        feed = engine.unconsumed_tail
        if total > _MAX_INFLATED:
            raise ImageError("the deflated data set grows beyond 1 GiB")


def _header_end(encoded: bytes) -> int:
    """Offset of the data set: after the group length element (0002,0000) UL and what it counts."""
    if encoded[132:138] != b"\x02\x00\x00\x00UL":
        raise ImageError("the file header has no group length")
    return 144 + int(struct.unpack("<I", encoded[140:144])[0])


def _check_header(dataset: Any) -> None:
    keywords = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    present = [keyword for keyword in keywords if keyword in dataset]
    if not present:
        raise ImageError("the object has no pixel data")
    for keyword in ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation"):
        if keyword not in dataset or dataset[keyword].value in (None, ""):
            raise ImageError(f"the header cannot be used: {keyword} is missing")
    rows, columns, samples = int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel)
    if rows < 1 or columns < 1 or samples not in (1, 3, 4) or rows * columns * samples > _MAX_PIXELS:
        raise ImageError(f"the header says {rows} x {columns} x {samples}, which cannot be shown")
    syntax = dataset.file_meta.TransferSyntaxUID if "TransferSyntaxUID" in getattr(dataset, "file_meta", ()) else None
    if syntax is None or not syntax.is_encapsulated:
        need = rows * columns * samples * int(dataset.BitsAllocated) / 8
        if dataset.PhotometricInterpretation == "YBR_FULL_422":
            need *= 2 / 3
        if len(dataset[present[0]].value) < need:
            raise ImageError("the pixel data is shorter than rows x columns say")
    else:
        _check_codestream(dataset, rows, columns, syntax)


def _check_codestream(dataset: Any, rows: int, columns: int, syntax: Any) -> None:
    """The first frame's own dimensions must be the header's: decoders allocate by the codestream."""
    from pydicom.encaps import get_frame

    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=frames)
    size = _codestream_size(frame)
    if size is not None and size != (rows, columns):
        raise ImageError(f"the header says {rows} x {columns}, the compressed picture {size[0]} x {size[1]}")


def _codestream_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) by the SOF of a JPEG or JPEG-LS stream or the SIZ of JPEG 2000; None if there is none (RLE)."""
    siz = frame.find(b"\xff\x4f\xff\x51")
    if 0 <= siz < 256 and len(frame) >= siz + 24:
        x1, y1, x0, y0 = struct.unpack(">IIII", frame[siz + 8 : siz + 24])
        return (y1 - y0, x1 - x0)
    if not frame.startswith(b"\xff\xd8"):
        return None
    at = 2
    while at + 9 < len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], struct.unpack(">H", frame[at + 2 : at + 4])[0]
        if marker == 0xFF:
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = struct.unpack(">HH", frame[at + 5 : at + 9])
            return (rows, columns) if rows and columns else None
        else:
            at += 2 + length
    return None


def _decode(dataset: Any) -> NDArray[Any]:
    from pydicom.pixels import apply_color_lut, pixel_array

    frame = pixel_array(dataset, index=0)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        coloured = apply_color_lut(frame, dataset)
        return coloured[..., :3].astype(np.float32) / np.iinfo(coloured.dtype).max
    return np.asarray(frame)


def _present(dataset: Any, frame: NDArray[Any]) -> Grey:
    if frame.ndim == 3:
        scale = 1.0 if frame.dtype.kind == "f" else float(2 ** int(dataset.BitsStored) - 1)
        return _grey(np.clip(frame[..., :3].astype(np.float32) / scale, 0, 1))
    grey = _window(dataset, frame)
    turned = dataset.PhotometricInterpretation == "MONOCHROME1"
    if dataset.get("PresentationLUTShape", "") == "INVERSE" and not turned:
        turned = True
    # on a grid of 16 bits, so that a picture stored inverted comes out as itself, to the last bit
    return (np.round((1 - grey if turned else grey) * 65_535) / 65_535).astype(np.float32)


def _window(dataset: Any, frame: NDArray[Any]) -> NDArray[np.float64]:
    from pydicom.pixels import apply_modality_lut, apply_voi

    values = np.asarray(apply_modality_lut(frame, dataset))
    if dataset.get("VOILUTSequence"):
        item = dataset.VOILUTSequence[0]
        if "LUTDescriptor" in item and "LUTData" in item:
            table = apply_voi(values.astype(np.int64) if values.dtype.kind == "f" else values, dataset)
            return _stretch(np.asarray(table, dtype=np.float64), 0, 2 ** int(item.LUTDescriptor[2]) - 1)
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    values = values.astype(np.float64)
    values = np.where(np.isfinite(values), values, 0.0)
    if centre is not None and width is not None and 1 <= width < 1e9 and abs(centre) < 1e9:
        shown = _apply_window(values, centre, width, str(dataset.get("VOILUTFunction", "LINEAR") or "LINEAR"))
        if float(shown.max()) > float(shown.min()) or float(values.max()) == float(values.min()):
            return shown
    plain = frame.dtype.kind == "u" and int(dataset.BitsStored) <= 8 and float(dataset.get("RescaleSlope", 1) or 1) == 1
    if plain:
        return _stretch(values, 0, 2 ** int(dataset.BitsStored) - 1)
    return _stretch(values, float(values.min()), float(values.max()))


def _apply_window(values: NDArray[np.float64], centre: float, width: float, function: str) -> NDArray[np.float64]:
    """DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -60, 60)))
    if function == "LINEAR_EXACT":
        return _stretch(values, centre - width / 2, centre + width / 2)
    low = centre - 0.5 - (width - 1) / 2
    return _stretch(values, low, low + max(width - 1, 1e-6))


def _stretch(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    if high <= low:
        return np.zeros(values.shape)
    return np.clip((values - low) / (high - low), 0, 1)


def _first(value: Any) -> float | None:
    """The first of a multi-valued decimal string, or None where there is no finite number."""
    if value is None or value == "":
        return None
    one = value[0] if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue" else value
    number = float(one)
    return number if np.isfinite(number) else None


def _grey(colour: Grey) -> Grey:
    return np.clip(colour @ _LUMA, 0, 1).astype(np.float32)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
