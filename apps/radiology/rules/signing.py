"""The text of a report and the hash that its signature is about."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

SECTIONS = (("findings", "Findings"), ("impression", "Impression"))


def report_text(sentences: Iterable[Mapping[str, Any]]) -> str:
    """The report as plain text: each section's heading, then its sentences."""
    listed = list(sentences)
    parts = []
    for key, title in SECTIONS:
        lines = [str(one["text"]).strip() for one in listed if one["section"] == key and str(one["text"]).strip()]
        if lines:
            parts.append(title + "\n" + "\n".join(lines))
    return "\n\n".join(parts)


def report_digest(*, text: str, images: list[dict[str, str]], model_digest: str, signer: str, signed_at: str) -> str:
    """SHA-256 over the canonical JSON (sorted keys, no spaces, UTF-8) of everything that a signature stands for."""
    content = {
        "images": images, "model_digest": model_digest, "signed_at": signed_at, "signer": signer, "text": text,
    }  # fmt: skip
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def open_questions(sentences: Iterable[Mapping[str, Any]]) -> int:
    """How many sentences have no support on the image and were neither confirmed nor rewritten."""
    return sum(1 for one in sentences if not one.get("supported", True) and not one.get("confirmed", False))
