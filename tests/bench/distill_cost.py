"""What alignment costs at the text pair's sizes (12 × 768 → 6 × 384): its share of a step's operations and time."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ml_core.distill import presets
from ml_core.distill.cost import alignment_flops
from ml_core.distill.dfad import DFAD, DFADConfig, compiled
from ml_core.distill.features import Features
from ml_core.distill.teachers.text import TextTaps
from ml_core.evals.bench import meta, row
from ml_core.models.transformers_shim import transformers_import

RESULT = Path(__file__).parent / "results" / "distill-cost.json"
TEACHER, STUDENT = (12, 768), (6, 384)  # layers, width
SYSTEMS = {
    "dfad": DFADConfig(),
    "dfad, all tokens": DFADConfig(token_share=1.0),
    "dfad_as_published": presets.as_published(),
    "fitnets": presets.fitnets(),
    "kd": presets.plain_kd(),
}


def main() -> int:
    """Count and time, write `--out`, print it as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--device", default="cpu", help='"cuda": models in bf16 autocast, as in the benchmark')
    parser.add_argument("--compiled", action="store_true", help="the loss step by torch.compile (inductor) too")
    parser.add_argument("--graphs", action="store_true", help="each part as a CUDA graph")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")  # as in training
    step = _Step(batch=args.batch, tokens=args.tokens, device=torch.device(args.device))
    about = meta("distill-cost", packages=("torch", "transformers")) | {"device": step.device_words}
    options = f"--batch {args.batch} --tokens {args.tokens} --device {args.device}{' --graphs' * args.graphs}"
    about["command"] = f"python -m tests.bench.run distill-cost {options}"
    result = {"meta": about, "rows": step.rows(runs=args.runs, also_compiled=args.compiled, graphs=args.graphs)}
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


class _Step:
    """Teacher and student of random weights, one batch without padding, and what its parts take."""

    def __init__(self, *, batch: int, tokens: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.batch, self.tokens, self.device = batch, tokens, device
        self.teacher, self.student = (_encoder(*size).to(device) for size in (TEACHER, STUDENT))
        self.teacher.requires_grad_(False)
        self.ids = torch.randint(0, 1_000, (batch, tokens), device=device)
        self.case = f"12x768>6x384, b {batch}, n {tokens}, {device.type}"

    @property
    def device_words(self) -> str:
        """The GPU's name, or "cpu"."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def rows(self, *, runs: int, also_compiled: bool, graphs: bool = False) -> list[dict[str, Any]]:
        """Times of teacher's forward and student's step, and of each system the alignment's time and shares.

        A share is of one run of all three, one behind the other, so that whatever else slows the machine slows all.
        """
        wrap = self._graphed if graphs else lambda call: call
        rows, steps = [], [wrap(self._taught), wrap(self._learnt)]
        for name, config in SYSTEMS.items():
            rows.append(self._row(name, "share of operations", "share", [self._counted(config)]))
            dfad = DFAD(config, (TEACHER[1],) * TEACHER[0], (STUDENT[1],) * STUDENT[0]).to(self.device)
            aligning = {name: self._aligning(dfad)}
            if also_compiled:
                aligning[f"{name}, compiled"] = self._aligning(compiled(dfad))
            for system, align in aligning.items():
                align = wrap(align)
                timed = [[self._time(step) for step in (*steps, align)] for _ in range(runs + 2)][2:]
                teacher, student, own = (list(times) for times in zip(*timed, strict=True))
                rows.append(self._row(system, "teacher's forward", "ms", teacher))
                rows.append(self._row(system, "student's forward and backward", "ms", student))
                rows.append(self._row(system, "alignment", "ms", own))
                rows.append(self._row(system, "share of time", "share", [times[-1] / sum(times) for times in timed]))
        return rows

    def _row(self, system: str, metric: str, unit: str, values: list[float]) -> dict[str, Any]:
        return row(self.case, system=system, metric=metric, unit=unit, values=values)

    def _time(self, call: Callable[[], object]) -> float:
        """Milliseconds until the device is done."""
        began = time.perf_counter()
        call()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) * 1e3

    def _graphed(self, call: Callable[[], object]) -> Callable[[], object]:
        """The call as one CUDA graph, warmed up on a side stream first."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def _shown(self, model: TextTaps) -> Features:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return model(self.ids)

    @torch.no_grad()
    def _taught(self) -> Features:
        return self._shown(self.teacher)

    def _learnt(self) -> None:
        self.student.zero_grad(set_to_none=True)
        self._shown(self.student).pooled.float().square().mean().backward()

    def _aligning(self, step: Callable[..., Any]) -> Callable[[], None]:
        """Loss and its gradient on the student's features and on the projectors."""
        with torch.no_grad():
            teacher, student = _single(self._taught()), _single(self._shown(self.student))

        def run() -> None:
            leaves = [x.detach().requires_grad_() for x in (*student.layers, student.pooled)]
            shown = Features(layers=tuple(leaves[:-1]), pooled=leaves[-1], logits=leaves[-1][:, :2])
            step(shown, teacher, leaves[-1].sum() * 0.0, 0.0).total.backward()

        return run

    def _counted(self, config: DFADConfig) -> float:
        """Matrix products of the alignment in those of the whole step: backward is twice the forward."""
        dfad = DFAD(config, (TEACHER[1],) * TEACHER[0], (STUDENT[1],) * STUDENT[0]).to("meta")
        align = alignment_flops(dfad, self._empty(*STUDENT, learns=True), self._empty(*TEACHER, learns=False))
        return align / (align + self._forward(*TEACHER) + 3 * self._forward(*STUDENT))

    def _forward(self, layers: int, d: int) -> int:
        return layers * self.batch * self.tokens * (24 * d * d + 4 * self.tokens * d)

    def _empty(self, layers: int, d: int, *, learns: bool) -> Features:
        def empty(*shape: int) -> torch.Tensor:
            return torch.empty(self.batch, *shape, device="meta", requires_grad=learns)

        return Features(layers=tuple(empty(self.tokens, d) for _ in range(layers)), pooled=empty(d), logits=empty(2))


def _encoder(layers: int, d: int) -> TextTaps:
    transformers = transformers_import()
    config = transformers.BertConfig(
        vocab_size=1_000, hidden_size=d, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=4 * d
    )
    return TextTaps(transformers.BertModel(config, add_pooling_layer=False)).eval()


def _single(shown: Features) -> Features:
    layers = tuple(x.float() for x in shown.layers)
    return Features(layers=layers, pooled=shown.pooled.float(), logits=shown.pooled[:, :2].float())
