"""Checks what a header claims about its pixels against the bytes that are there, before anything is decoded."""

import struct
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from apps.radiology.rules.dicom_header import NotDisplayableError, RefusedError
from apps.radiology.rules.limits import Limits, size_words

_ITEM = b"\xfe\xff\x00\xe0"
_DELIMITER = b"\xfe\xff\xdd\xe0"
_BITS = (1, 8, 16, 32, 64)
_NO_SIZE_MARKERS = {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True, kw_only=True, slots=True)
class Claims:
    """What the header says: sizes in pixels, `bits` allocated for a sample."""

    rows: int
    columns: int
    frames: int
    samples: int
    bits: int
    photometric: str


def claims_check(dataset: Dataset, syntax: str, limits: Limits) -> Claims:
    """Read and check the claims. Raises RefusedError (lies, damage, too large) or NotDisplayableError (no decoder)."""
    claims = _claims(dataset)
    _check_limits(claims, limits)
    uid = UID(syntax)
    if not uid.is_transfer_syntax:
        raise NotDisplayableError(f"no decoder for transfer syntax {syntax}")
    if "PixelData" in dataset:
        if uid.is_encapsulated:
            _check_encapsulated(dataset.PixelData, claims, uid)
        else:
            _check_plain(dataset, claims)
    try:
        decoder = get_decoder(uid)
    except NotImplementedError as error:
        raise NotDisplayableError(f"stored, cannot be shown: no decoder for {uid.name} ({uid})") from error
    if not decoder.is_available:
        raise NotDisplayableError(f"stored, cannot be shown: no decoder for {uid.name} ({uid})")
    return claims


def codestream_size(data: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 codestream says itself; None where it cannot be told."""
    if data[:4] == b"\xff\x4f\xff\x51" and len(data) >= 24:  # JPEG 2000: SOC, SIZ (ISO 15444-1 A.5.1)
        width, height, left, top = struct.unpack(">IIII", data[8:24])
        return max(0, height - top), max(0, width - left)
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        is_frame = 0xC0 <= marker <= 0xCF and marker not in _NO_SIZE_MARKERS
        if is_frame or marker == 0xF7:  # SOFn of ISO 10918-1 B.2.2, SOF55 of JPEG-LS
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return height, width
        at += 2 + int(struct.unpack(">H", data[at + 2 : at + 4])[0])
    return None


def _claims(dataset: Dataset) -> Claims:
    def number(keyword: str, default: int | None = None) -> int:
        value = dataset.get(keyword)
        if value is None or value == "":
            if default is None:
                raise RefusedError(f"a required tag is absent: {keyword}")
            return default
        try:
            return int(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise RefusedError(f"{keyword} is not a whole number") from error

    claims = Claims(
        rows=number("Rows"),
        columns=number("Columns"),
        frames=number("NumberOfFrames", 1),
        samples=number("SamplesPerPixel", 1),
        bits=number("BitsAllocated"),
        photometric=str(dataset.get("PhotometricInterpretation") or "MONOCHROME2").strip(),
    )
    if min(claims.rows, claims.columns, claims.frames) < 1:
        raise RefusedError(f"an image of {claims.rows} x {claims.columns} pixels in {claims.frames} frames")
    if claims.bits not in _BITS:
        raise RefusedError(f"BitsAllocated is {claims.bits}, which is none of {_BITS}")
    if claims.samples not in (1, 3):
        raise NotDisplayableError(f"stored, cannot be shown: {claims.samples} samples a pixel")
    return claims


def _check_limits(claims: Claims, limits: Limits) -> None:
    frame = claims.rows * claims.columns * claims.samples * max(8, claims.bits) // 8
    if max(claims.rows, claims.columns) > limits.side:
        raise RefusedError(f"{claims.rows} x {claims.columns} pixels: the limit is {limits.side} a side")
    if claims.frames > limits.frames:
        raise RefusedError(f"{claims.frames:,} frames: the limit is {limits.frames:,}")
    if frame > limits.frame_bytes:
        raise RefusedError(f"a frame would take {size_words(frame)}: the limit is {size_words(limits.frame_bytes)}")
    if frame * claims.frames > limits.decoded_bytes:
        whole = size_words(frame * claims.frames)
        raise RefusedError(f"decoded it would take {whole}: the limit is {size_words(limits.decoded_bytes)}")


def _check_plain(dataset: Dataset, claims: Claims) -> None:
    if dataset["PixelData"].is_undefined_length:
        raise RefusedError("pixel data is not what the transfer syntax says: it is compressed")
    bits = claims.rows * claims.columns * claims.samples * claims.frames * claims.bits
    if claims.photometric == "YBR_FULL_422":  # two pixels share their colour, PS3.3 C.7.6.3.1.2
        bits = bits * 2 // 3
    expected, there = (bits + 7) // 8, len(dataset.PixelData)
    if there < expected:
        raise RefusedError(
            f"pixel data shorter than rows x columns say: {there:,} of {expected:,} bytes"
            f" for {claims.rows} x {claims.columns} in {claims.frames} frame(s)"
        )


def _check_encapsulated(data: bytes, claims: Claims, uid: UID) -> None:
    """Walk the items (PS3.5 A.4): a table of offsets, then fragments, each as long as it says."""
    if data[:4] != _ITEM:
        raise RefusedError(f"pixel data is not what the transfer syntax says ({uid.name}): it is not encapsulated")
    at, items, first = 0, 0, b""
    while at + 8 <= len(data) and data[at : at + 4] != _DELIMITER:
        if data[at : at + 4] != _ITEM:
            raise RefusedError("pixel data is damaged: an item of compressed data does not begin where it should")
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + length > len(data):
            raise RefusedError("pixel data ends early: a compressed frame is longer than the file")
        if items == 1:
            first = data[at + 8 : at + 8 + length]
        at, items = at + 8 + length, items + 1
    if items - 1 < claims.frames:
        raise RefusedError(f"{claims.frames} frames are claimed and {max(0, items - 1)} are there")
    said = codestream_size(first)
    if said is not None and said != (claims.rows, claims.columns):
        raise RefusedError(
            f"the header says {claims.rows} x {claims.columns} pixels, the compressed frame {said[0]} x {said[1]}"
        )
