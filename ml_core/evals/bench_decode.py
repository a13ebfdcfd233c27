"""Decoding a Llama-shaped model, tokens a second at batch 1: ours in bf16 and int8 beside transformers' generate.

Peers: generate as it is, and with its static cache compiled. The limit is what reading all weights once a token allows
at the bandwidth that a sum over 2 GiB reaches in the same run. Weights are random: text is compared on a small model.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ml_core.evals.bench import BenchError, meta, row
from ml_core.kernels.decode_row import op as one_row
from ml_core.kernels.gemv_int8.op import quantize_rows
from ml_core.models.llama import LlamaConfig
from ml_core.models.transformers_shim import transformers_import
from ml_core.serving.decode import DecodeEngine, Kind

TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPES: dict[str, dict[str, int]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "tiny": TINY,
}
PROMPT = 128
_CACHE = 200 * 2**20  # bytes of weights that no cache of a GPU holds
INT8_OFF = 0.05  # relative RMS of logits with int8 weights against the same model without


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--device, --shape, --new, --runs, --no-peers, --compiled."""
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="7b" if cuda else "tiny")
    parser.add_argument("--new", type=int, default=128, help="tokens written in each run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument(
        "--compiled", action="store_true", help="also with steps compiled by torch before their capture"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check text on a small model, then time. Raises BenchError where the text differs from transformers'."""
    _gate(args.device)
    config, device = _config(args.shape), torch.device(args.device)
    paths = _measured(config) if device.type == "cuda" else []
    rows: list[dict[str, Any]] = []
    kinds: tuple[Kind, ...] = ("bf16", "int8")
    for kind in kinds:
        for compiled in (False, True) if args.compiled else (False,):
            rows += _ours(args, config=config, kind=kind, compiled=compiled)
            _freed(device)
    if not args.no_peers:
        rows += _peers(args)
    about = meta("decode", packages=("torch", "triton", "transformers"))
    if device.type == "cuda":
        from ml_core.evals.gpu import gpu_meta

        about = gpu_meta("decode") | {"paths": paths}
        rows += _limits(args.shape, config)
    return {"meta": about, "rows": rows}


def _measured(config: LlamaConfig) -> list[str]:
    """Time the paths of every product of a one-row step, dense and int8, and say which is taken for each.

    Each call meets another copy of the weight, so that none is found in the GPU's cache, as in a model.
    """
    from ml_core.evals.gpu import replayed_ms

    c, dtype = config, torch.bfloat16
    x, wide, norm = (torch.randn(*size, device="cuda", dtype=dtype) for size in ((1, c.d), (1, c.ffn), (c.d,)))
    heads = c.heads + 2 * c.kv_heads
    cos, sin = (each.to("cuda", dtype) for each in c.rope.tables(c.head_size, n=PROMPT))
    caches = [torch.zeros(1, c.kv_heads, PROMPT, c.head_size, device="cuda", dtype=dtype) for _ in range(2)]
    rope: dict[str, Any] = {"cos": cos, "sin": sin, "position": torch.tensor([7], device="cuda")}
    rope |= {"keys": caches[0], "values": caches[1]}
    queries = torch.randn(1, c.heads * c.head_size, device="cuda", dtype=dtype)
    products: list[tuple[str, int, torch.Tensor, Callable[..., torch.Tensor]]] = [
        ("turned", heads * c.head_size, x, partial(one_row.turned, x, norm, eps=c.eps, **rope)),
        ("added", c.d, queries, partial(one_row.added, x, queries)),
        ("gated", 2 * c.ffn, x, partial(one_row.gated, x, norm, eps=c.eps)),
        ("added", c.d, wide, partial(one_row.added, x, wide)),
        ("normed", c.vocabulary, x, partial(one_row.normed, x, norm, eps=c.eps)),
    ]
    said = []
    for name, rows, given, call in products:
        for int8 in (False, True):
            size = rows * given.shape[1] * (1 if int8 else 2)
            copies = [_parts(rows, given.shape[1], int8=int8) for _ in range(1 + _CACHE // size)]
            turn = itertools.cycle(copies)

            def run(path: str, turn: Any = turn, call: Callable[..., torch.Tensor] = call) -> torch.Tensor:
                return call(next(turn), path=path)

            one_row.measure(name, run, given, copies[0], clock=replayed_ms)
            said.append(str(one_row.choose(name, given, copies[0])))
    return said


def _parts(rows: int, width: int, *, int8: bool) -> one_row.Parts:
    weight = torch.randn(rows, width, device="cuda", generator=torch.Generator("cuda").manual_seed(0)) * width**-0.5
    if not int8:
        return weight.to(torch.bfloat16), None, None
    levels, scale = quantize_rows(weight)
    return levels, scale, None


def _ours(args: argparse.Namespace, *, config: LlamaConfig, kind: Kind, compiled: bool) -> list[dict[str, Any]]:
    dtype = torch.bfloat16 if args.device != "cpu" else torch.float32
    length = PROMPT + args.new
    engine = DecodeEngine.of(
        config, device=args.device, dtype=dtype, weights=kind, rows=(1,), lengths=(length,), compiled=compiled
    )
    prompt = [[(7 * at) % config.vocabulary for at in range(PROMPT)]]
    speeds = _speeds(lambda: engine.generate(prompt, max_new_tokens=args.new), args=args)
    system = "assay_compiled" if compiled else "assay"
    return [row(f"decode{args.shape}/b1/{kind}", system=system, metric="tok_s", unit="tokens/s", values=speeds)]


def _peers(args: argparse.Namespace) -> list[dict[str, Any]]:
    transformers = transformers_import()
    dtype = torch.bfloat16 if args.device != "cpu" else torch.float32
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(args.device):
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_given(args.shape))).eval()
    finally:
        torch.set_default_dtype(before)
    ids = torch.arange(PROMPT, device=args.device)[None] % 100
    options = {"max_new_tokens": args.new, "min_new_tokens": args.new, "do_sample": False, "pad_token_id": 0}

    def generate(**more: Any) -> None:
        with torch.no_grad():
            model.generate(ids, **options, **more)

    rows = [_row(args, "transformers_eager", _speeds(generate, args=args))]
    if args.device != "cpu":
        static = lambda: generate(cache_implementation="static")  # noqa: E731
        static()  # compiles in its first calls
        rows.append(_row(args, "transformers_static_compiled", _speeds(static, args=args)))
    return rows


def _row(args: argparse.Namespace, system: str, speeds: list[float]) -> dict[str, Any]:
    return row(f"decode{args.shape}/b1/bf16", system=system, metric="tok_s", unit="tokens/s", values=speeds)


def _speeds(call: Callable[[], object], *, args: argparse.Namespace) -> list[float]:
    """Tokens a second of whole runs, the prompt included; after two to warm up."""
    found = []
    for number in range(args.runs + 2):
        start = time.perf_counter()
        call()
        if args.device != "cpu":
            torch.cuda.synchronize()
        if number >= 2:
            found.append(args.new / (time.perf_counter() - start))
    return found


def _limits(shape: str, config: LlamaConfig) -> list[dict[str, Any]]:
    from ml_core.evals.gpu import cuda_times

    source = torch.empty(1 << 28, device="cuda", dtype=torch.int64)
    speed = [source.numel() * 8 / ms * 1e3 for ms in cuda_times(lambda: source.sum())]
    layer = config.d * (config.heads * 2 + config.kv_heads * 2) * config.head_size + 3 * config.d * config.ffn
    weights = config.layers * layer + config.vocabulary * config.d  # read once a token; of the embedding only a row
    return [
        row(
            f"decode{shape}/b1/{kind}", system="limit_of_bandwidth", metric="tok_s", unit="tokens/s",
            values=[each / (weights * size) for each in speed],
        )
        for kind, size in (("bf16", 2), ("int8", 1))
    ]  # fmt: skip


def _gate(device: str) -> None:
    """Greedy text of a small random model, float32: ours is transformers', and int8 stays near."""
    transformers = transformers_import()
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_given("tiny"))).to(device).eval()
    tensors = model.state_dict()

    def source(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return tensors[name].view(shape)

    config = _config("tiny")
    given: dict[str, Any] = {"device": device, "dtype": torch.float32, "lengths": (64,)}
    engine = DecodeEngine.of(config, source=source, **given)
    prompt = list(range(1, 20))
    with torch.no_grad():
        wanted = model.generate(
            torch.tensor([prompt], device=device), max_new_tokens=32, min_new_tokens=32, do_sample=False, pad_token_id=0
        )  # fmt: skip
    (got,) = engine.generate([prompt], max_new_tokens=32)
    if got != wanted[0, len(prompt) :].tolist():
        raise BenchError("decode: the text is not transformers'")
    rough = DecodeEngine.of(config, source=source, weights="int8", **given)
    exact, near = engine.logits([prompt]), rough.logits([prompt])
    off = float((near - exact).norm() / exact.norm())
    if not 0 < off <= INT8_OFF:
        raise BenchError(f"decode: logits with int8 weights are {off:.3f} off, more than {INT8_OFF}")


def _given(shape: str) -> dict[str, Any]:
    given = SHAPES[shape]
    vocabulary = 32_000 if shape == "7b" else 128
    return {
        **given,
        "num_key_value_heads": given["num_attention_heads"],
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }


def _config(shape: str) -> LlamaConfig:
    return LlamaConfig.from_transformers(transformers_import().LlamaConfig(**_given(shape)).to_dict())


def _freed(device: torch.device) -> None:
    if device.type == "cuda":
        import gc

        gc.collect()
        torch.cuda.empty_cache()
