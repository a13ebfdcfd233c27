"""An encoder of 6 × 384 (MiniLM-L6's shape, random weights) on this CPU: our measured choice of engine and its peers.

`assay` is what the chooser picks for the shape among INT8 systems that passed parity; "assay by …" are all of those.
Peers run the same encoder, with its padding mask, in their own precisions; all are timed in the same rounds.
"""

import argparse
import os
import tempfile
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ml_core.errors import EngineError
from ml_core.evals.bench import BenchError, meta
from ml_core.models.transformers_shim import transformers_import
from ml_core.quant import Quantizer
from ml_core.seed import torch_generator
from ml_core.serving.engines import parity
from ml_core.serving.engines.build import compiled, export_for
from ml_core.serving.engines.interface import INT8, REFERENCE, SYSTEMS, Compiled, Program, Sizes, System
from ml_core.serving.engines.machine import this_machine
from ml_core.serving.engines.measure import measure
from ml_core.serving.engines.onnxruntime import OnnxRuntime
from ml_core.serving.engines.table import Shape, Timing, choose, lines

SHAPES = ((1, 32), (1, 128), (8, 128), (1, 512))
PEERS = (
    "torch fp32", "torch fp32 compiled", "torch bf16 compiled", "onnxruntime fp32", "openvino fp32", "openvino bf16",
)  # fmt: skip
LAYERS, D, HEADS, FFN, VOCABULARY, MOST = 6, 384, 12, 1_536, 30_522, 512
DYNAMIC = System(name="onnxruntime int8 dynamic", engine="onnxruntime", form="float", precision="int8")
_FAR = 0.05  # relative RMS of ONNX Runtime's own quantization from fp32
_HALF = {"avx512_bf16", "amx_bf16", "bf16"}  # without one of these bf16 is emulated


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--rounds, --seconds, --shapes, --layers, --no-compile."""
    parser.add_argument("--rounds", type=int, default=9, help="how often every system is timed for each shape")
    parser.add_argument("--seconds", type=float, default=0.2, help="how long each time")
    parser.add_argument("--shapes", nargs="+", default=[f"{b}x{n}" for b, n in SHAPES], help="BATCHxTOKENS")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check every system, then time all together. Raises BenchError where a peer is wrong."""
    threads, load_before = torch.get_num_threads(), os.getloadavg()[0]
    model = Encoder(layers=args.layers).eval()
    sizes = [dict(zip("bn", map(int, each.split("x")), strict=True)) for each in args.shapes]
    plain = encoder_program(model)
    program = encoder_program(Quantizer(model).convert()[0])
    skipped: dict[str, str] = {}
    peers = _peers(plain, program, threads=threads, no_compile=args.no_compile, skipped=skipped)
    for name, peer in peers.items():
        _gate(name, peer, plain=plain, program=program, shapes=sizes)
    table, _ = measure(
        program, digest="0" * 64, shapes=sizes, threads=threads, peers=peers, rounds=args.rounds, seconds=args.seconds
    )
    rows = [row for choice in choose(table) for row in _rows(choice.shape, chosen=choice.system, peers=set(peers))]
    about = meta("encoder", packages=("torch", "transformers", "onnxruntime", "openvino", "onnx", "onnxscript"))
    about["machine"] |= {"flags": list(this_machine(threads=threads).flags), "load_1min_before": load_before}
    systems = [asdict(each) for each in table.systems]
    return {"meta": about | {"choice": lines(table), "systems": systems, "skipped": skipped}, "rows": rows}


class Encoder(nn.Module):
    """transformers' BERT encoder at MiniLM-L6's size, embeddings included, random weights."""

    def __init__(self, *, layers: int = LAYERS) -> None:
        super().__init__()
        transformers = transformers_import()
        config = transformers.BertConfig(
            hidden_size=D, num_hidden_layers=layers, num_attention_heads=HEADS, intermediate_size=FFN,
            vocab_size=VOCABULARY, max_position_embeddings=MOST,
        )  # fmt: skip
        torch.manual_seed(0)
        self.bert = transformers.BertModel(config, add_pooling_layer=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids (b n) and their mask, 1 where there is one, to hidden states (b n d)."""
        return self.bert(input_ids=ids, attention_mask=mask).last_hidden_state


def encoder_program(model: nn.Module) -> Program:
    """The encoder on b texts of n tokens."""

    def example(sizes: Sizes, seed: int) -> tuple[Tensor, Tensor]:
        shape = (sizes["b"], sizes["n"])
        ids = torch.randint(VOCABULARY, shape, generator=torch_generator(seed, "bench", "encoder", *shape))
        return ids, torch.ones(shape, dtype=torch.int64)

    axes = {0: "b", 1: "n"}
    return Program(
        module=model, inputs=("ids", "mask"), outputs=("hidden",), axes={"ids": axes, "mask": axes},
        limits={"b": 1_024, "n": MOST}, example=example,
    )  # fmt: skip


def _peers(
    plain: Program, program: Program, *, threads: int, no_compile: bool, skipped: dict[str, str]
) -> dict[str, Compiled]:
    found: dict[str, Compiled] = {}
    small = {"b": 2, "n": 16}
    graph = b""
    for system in (*(SYSTEMS[name] for name in PEERS), *(each for each in INT8 if each.compiled)):
        if system.compiled and no_compile:
            continue
        if system.precision == "bf16" and system.engine == "torch" and not _HALF & set(this_machine(threads=1).flags):
            skipped[system.name] = "this CPU only emulates bf16"
            continue
        given = program if system in INT8 else plain
        try:
            model = export_for(given, system=system, sizes=small)
            found[system.name] = compiled(given, system=system, model=model, threads=threads)
        except EngineError as error:
            skipped[system.name] = str(error)
            continue
        graph = model if system.name == "onnxruntime fp32" else graph
    if graph:
        found[DYNAMIC.name] = OnnxRuntime(_dynamic(graph), system=DYNAMIC, program=plain, threads=threads)
    return found


def _dynamic(graph: bytes) -> bytes:
    """ONNX Runtime's own dynamic quantization of the fp32 graph; uint8 weights where int8 ones would saturate."""
    tool = import_module("onnxruntime.quantization")
    exact = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"} & set(this_machine(threads=1).flags)
    kind = tool.QuantType.QInt8 if exact else tool.QuantType.QUInt8
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(graph)
        tool.quantize_dynamic(source, target, weight_type=kind)
        return target.read_bytes()


def _gate(name: str, peer: Compiled, *, plain: Program, program: Program, shapes: list[dict[str, int]]) -> None:
    for sizes in shapes:
        if peer.system in INT8:
            reference = compiled(program, system=REFERENCE, model=b"", threads=torch.get_num_threads())
            off, most = parity.output_errors(program, peer, reference=reference, sizes=sizes)
        else:
            given = plain.example(sizes, 0)
            with torch.no_grad():
                off = parity.relative(peer(*given)[0], to=plain.module(*given))
            most = _FAR if peer.system is DYNAMIC else parity.FLOAT[peer.system.precision]
        if off > most:
            raise BenchError(f"{name}: {off:.1e} off at {sizes} (at most {most:.1e})")


def _rows(shape: Shape, *, chosen: str, peers: set[str]) -> list[dict[str, Any]]:
    case = f"encoder6x384/{str(shape).replace(' ', '')}"
    named = {name if name in peers else f"assay by {name}": timing for name, timing in shape.timings.items()}
    return [_row(case, system, timing) for system, timing in {"assay": shape.timings[chosen], **named}.items()]


def _row(case: str, system: str, timing: Timing) -> dict[str, Any]:
    figures = {"value": timing.ms, "low": timing.low, "high": timing.high, "n": timing.n}
    return {"case": case, "system": system, "metric": "ms", "unit": "ms", **figures}
