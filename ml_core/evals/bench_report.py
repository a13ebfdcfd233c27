"""Sixteen images to sixteen reports of 128 tokens: ours beside transformers' encoder-decoder, seconds and joules.

Ours twice: the shipped student's geometry, and the peer's (ViT-B, 6 layers of 768). Weights are random, plans are made
so that exactly 128 tokens are written a report; the text of the step on the device is held against decode_plan's.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ml_core.evals.bench import BenchError, meta, row
from ml_core.models.report_student import STATES, ReportStudent, ReportStudentConfig, Written
from ml_core.models.transformers_shim import transformers_import
from ml_core.serving.report_decode import PlanDecoder

IMAGES, TOKENS, SENTENCES = 16, 128, 4
SHIPPED = ReportStudentConfig(vocabulary=2048)
PEER = ReportStudentConfig(
    vocabulary=8192, image_size=224, encoder="vit_base_patch16_224", encoder_depth=12, stem="", decoder_layers=6,
    decoder_width=768, decoder_heads=12, decoder_ffn=3072,
)  # fmt: skip
TINY = ReportStudentConfig(
    vocabulary=64, image_size=64, encoder_depth=1, stem="", decoder_layers=1, decoder_width=32, decoder_heads=2,
    decoder_ffn=64,
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--device, --runs, --no-peers, --tiny, --compiled."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument(
        "--compiled", action="store_true", help="also with steps compiled by torch before their capture"
    )
    parser.add_argument("--tiny", action="store_true", help="a model for tests in the place of both")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check, then time. Raises BenchError where the text differs from decode_plan's."""
    sizes = {"assay_tiny": TINY} if args.tiny else {"assay": SHIPPED, "assay_peer_size": PEER}
    rows: list[dict[str, Any]] = []
    for system, config in sizes.items():
        rows += _measured(system, _ours(config, device=args.device, compiled=False), args=args)
        if args.compiled:
            rows += _measured(f"{system}_compiled", _ours(config, device=args.device, compiled=True), args=args)
    if not args.no_peers:
        for dtype in (torch.float32, torch.bfloat16):
            rows += _measured(f"transformers_{str(dtype)[6:]}", _peer(dtype, device=args.device), args=args)
    about = meta("report", packages=("torch", "triton", "transformers", "timm"))
    if args.device != "cpu":
        from ml_core.evals.gpu import gpu_meta

        about = gpu_meta("report", packages=("torch", "triton", "transformers", "timm"))
    return {"meta": about, "rows": rows}


def _measured(system: str, call: Callable[[], object], *, args: argparse.Namespace) -> list[dict[str, Any]]:
    times = []
    for number in range(args.runs + 2):
        start = time.perf_counter()
        call()
        if args.device != "cpu":
            torch.cuda.synchronize()
        if number >= 2:
            times.append(time.perf_counter() - start)
    case = f"report/{IMAGES}x{TOKENS}"
    rows = [row(case, system=system, metric="s", unit="s", values=times)]
    if args.device != "cpu":
        from ml_core.evals.gpu import joules

        energy = [each / IMAGES for each in joules(call)]
        rows.append(row(case, system=system, metric="joules_per_report", unit="J", values=energy))
    return rows


def _ours(config: ReportStudentConfig, *, device: str, compiled: bool) -> Callable[[], object]:
    torch.manual_seed(0)
    student = ReportStudent(config).to(device).eval()
    decoder = PlanDecoder(student, device=device, compiled=compiled)
    images = torch.rand(IMAGES, 1, config.image_size, config.image_size, device=device)
    # a sentence is one control token and `limit` more, of which the last only ends it
    limit = TOKENS // SENTENCES - 1
    plans = [[5 + (row + at) % 7 for at in range(SENTENCES)] for row in range(IMAGES)]
    options = {"stop": config.vocabulary, "limit": limit}  # a token that is never chosen

    @torch.inference_mode()
    def memory() -> Tensor:
        seen = student.forward_seen(images)
        return student.memory(seen, seen.states.argmax(-1) % STATES)

    def draft() -> list[Written]:
        return decoder.decode(memory(), plans, **options)

    wanted = student.decode_plan(memory(), plans, **options)
    got = draft()
    texts = [[[sentence.tokens for sentence in each.sentences] for each in rows] for rows in (got, wanted)]
    if texts[0] != texts[1]:
        raise BenchError("report: the text is not decode_plan's")
    written = {sum(len(tokens) + 1 for tokens in sentences) for sentences in texts[0]}
    if written != {TOKENS}:
        raise BenchError(f"report: {written} tokens were written a report, not {TOKENS}")
    return draft


def _peer(dtype: torch.dtype, *, device: str) -> Callable[[], object]:
    transformers = transformers_import()
    encoder = transformers.ViTConfig(image_size=224)
    decoder = transformers.BertConfig(
        vocab_size=8192, num_hidden_layers=6, is_decoder=True, add_cross_attention=True
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = transformers.VisionEncoderDecoderModel(config=config).to(device, dtype).eval()
    pixels = torch.rand(IMAGES, 3, 224, 224, device=device, dtype=dtype)
    options = {
        "max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "decoder_start_token_id": 1,
        "pad_token_id": 0, "eos_token_id": 2, "use_cache": True,
    }  # fmt: skip

    def generate() -> object:
        with torch.no_grad():
            return model.generate(pixels, **options)

    return generate
