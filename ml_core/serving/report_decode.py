"""Writing reports under a plan without waiting for each token: ReportStudent.decode_plan as a step on the device.

The plan lies on the device, each row has its place in it, and what decode_plan decides in Python between two tokens is
done there in tensors. Such a step does the same work whatever comes out: on CUDA it is a graph, one a batch bucket.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from ml_core.data.findings import FINDINGS
from ml_core.errors import InputError
from ml_core.layers.blocks import Block, project_all
from ml_core.models.report_student import ReportStudent, Written, WrittenSentence
from ml_core.serving.graphs import GraphPool, compiled_step

BUCKETS = (1, 2, 4, 8, 16)
_EVERY = 8  # tokens between two looks at the device: whether all rows are through is seen up to so many steps late
_IDLE, _TOKEN = 0, 1  # what a step meant for a row: its plan is through, it wrote; 2: it ended a sentence
_LOG = logging.getLogger(__name__)


class PlanDecoder:
    """Writes what student.decode_plan writes, for up to 16 rows. Threads take turns.

    On CUDA each step is a replay (a bucket is captured when it is first needed), elsewhere the step runs eagerly;
    `report` says which. The student must be in eval mode, and may not be moved afterwards; trained further it may be.
    """

    def __init__(
        self, student: ReportStudent, *, device: torch.device | str, every: int = _EVERY, compiled: bool = False
    ) -> None:
        """every: tokens between two waits for the device. compiled: a step is compiled by torch before its capture."""
        if student.training:
            raise InputError("student: must be in eval mode")
        for block in student.decoder:
            if not isinstance(block, Block):
                raise InputError(f"student: its decoder holds a {type(block).__name__}, whose step is not known here")
            if block.attn.dpe.buckets is not None:
                raise InputError("student: its decoder's distances are bucketed, and the step reads them one by one")
        self.student, self.device, self.every, self.compiled = student, torch.device(device), every, compiled
        # the class token, the patches, and each finding's context
        self.m = 1 + student.encoder.patch_embed.num_patches + len(FINDINGS)
        self._pool = GraphPool(self.device) if self.device.type == "cuda" else None
        self._states: dict[int, tuple[_State, Callable[[], None]]] = {}
        self._lock = RLock()
        _LOG.info(self.report())

    @torch.inference_mode()
    def decode(
        self, memory: Float[Tensor, "b m d"], plans: Sequence[Sequence[int]], *, stop: int, limit: int = 40
    ) -> list[Written]:
        """See ReportStudent.decode_plan. Raises InputError where rows, memory and plans do not fit one another."""
        self._check(memory, plans=plans)
        if not plans:
            return []
        with self._lock:
            state, step = self._state(next(each for each in BUCKETS if each >= len(plans)))
            state.begin(self.student, memory=memory, plans=plans, stop=stop, limit=limit)
            most = self.student.config.max_tokens
            for number in range(1, most + 1):
                step()
                if (number % self.every == 0 or number == most) and state.finished():
                    break
            return state.written(plans)

    def report(self) -> str:
        """What runs: a line to print."""
        steps = "compiled" if self.compiled else "eager"
        graphs = "no CUDA graphs" if self._pool is None else f"CUDA graphs: {self._pool.report()}"
        rows = f"rows {BUCKETS}, a look every {self.every} tokens"
        return f"reports written by {steps} steps, {graphs} on {self.device}; {rows}"

    def _state(self, rows: int) -> "tuple[_State, Callable[[], None]]":
        if rows not in self._states:
            state = _State.empty(self.student, b=rows, m=self.m, device=self.device)
            step: Callable[[], None] = partial(_step, self.student, state)
            if self.compiled:
                step = compiled_step(step)
            if self._pool is not None:
                step = self._pool.capture(step).replay
            self._states[rows] = (state, step)
        return self._states[rows]

    def _check(self, memory: Tensor, *, plans: Sequence[Sequence[int]]) -> None:
        wanted = (len(plans), self.m, self.student.config.decoder_width)
        if tuple(memory.shape) != wanted:
            raise InputError(f"memory: expected {wanted}, got {tuple(memory.shape)}")
        if len(plans) > BUCKETS[-1]:
            raise InputError(f"plans: {len(plans)} rows; {BUCKETS[-1]} at most")
        if memory.dtype != torch.float32 or memory.device.type != self.device.type:
            raise InputError(f"memory: expected float32 on {self.device}, got {memory.dtype} on {memory.device}")


@dataclass(kw_only=True)
class _State:
    """What a step reads and rewrites, in memory that stays in place.

    Of each row (b): `plan` (b p) padded with 0, its `length`, `place` (control tokens fed so far), the token to feed,
    how many tokens its sentence has. Of each layer: keys and values of the text (b h n k) and of the memory (b h m k).
    biases (l h n n): by the query's and the key's position. at (1): the position. picks, logs, meant (b n): what each
    step chose, its log-probability, and what it meant.
    """

    plan: Tensor
    length: Tensor
    place: Tensor
    token: Tensor
    count: Tensor
    at: Tensor
    stop: Tensor
    limit: Tensor
    picks: Tensor
    logs: Tensor
    meant: Tensor
    biases: Tensor
    text: list[tuple[Tensor, Tensor]]
    cross: list[tuple[Tensor, Tensor]]

    @classmethod
    def empty(cls, student: ReportStudent, *, b: int, m: int, device: torch.device) -> "_State":
        """Every row through with its plan."""
        c = student.config
        n, shape = c.max_tokens, (c.decoder_heads, c.decoder_width // c.decoder_heads)

        def integers(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=torch.int64, device=device)

        def pairs(length: int) -> list[tuple[Tensor, Tensor]]:
            sizes = (b, shape[0], length, shape[1])
            k, v = ([torch.zeros(sizes, device=device) for _ in range(c.decoder_layers)] for _ in range(2))
            return list(zip(k, v, strict=True))

        return cls(
            plan=integers(b, n + 1), length=integers(b), place=integers(b) + 1, token=integers(b), count=integers(b),
            at=integers(1), stop=integers(1), limit=integers(1), picks=integers(b, n), meant=integers(b, n),
            logs=torch.zeros(b, n, device=device), text=pairs(n), cross=pairs(m),
            biases=torch.zeros(c.decoder_layers, c.decoder_heads, n, n, device=device),
        )  # fmt: skip

    def begin(
        self, student: ReportStudent, *, memory: Tensor, plans: Sequence[Sequence[int]], stop: int, limit: int
    ) -> None:
        """Take in a batch, and feed the first control token of each row; rows beyond it are through."""
        b, rows = self.plan.shape[0], len(plans)
        for block, (keys, values) in zip(student.decoder, self.cross, strict=True):
            k, v = block.cross.context(memory)
            keys[:rows].copy_(k)
            values[:rows].copy_(v)
        most = self.plan.shape[1]  # a token more than can be fed
        self.biases.copy_(_distance_biases(student))
        padded = [[*plan[:most], *[0] * (most - len(plan))] for plan in (*plans, *[[]] * (b - rows))]
        self.plan.copy_(torch.tensor(padded))
        self.length.copy_(torch.tensor([len(plan) for plan in plans] + [0] * (b - rows)))
        self.token.copy_(self.plan[:, 0])
        self.place.fill_(1)
        self.stop.fill_(stop)
        self.limit.fill_(limit)
        for each in (self.count, self.at, self.meant):
            each.zero_()

    def take(self, picks: Int[Tensor, " b"], logs: Float[Tensor, " b"]) -> None:
        """What follows from the model's picks: `token` is what is fed next (models.report_student._Row, in tensors)."""
        active = self.place <= self.length
        ends = active & ((picks == self.stop) | (self.count >= self.limit))
        self.picks.index_copy_(1, self.at, picks[:, None])
        self.logs.index_copy_(1, self.at, logs[:, None])
        self.meant.index_copy_(1, self.at, (active.long() + ends.long())[:, None])
        self.count.copy_(torch.where(ends, 0, self.count + 1))
        self.place.add_(ends)
        control = self.plan.gather(1, (self.place - 1)[:, None])[:, 0]  # 0 behind the plan
        self.token.copy_(torch.where(ends, control, torch.where(active, picks, 0)))
        self.at.add_(1)

    def finished(self) -> bool:
        """Whether every row is through. Waits for the device."""
        return bool((self.place > self.length).all())

    def written(self, plans: Sequence[Sequence[int]]) -> list[Written]:
        """The sentences so far. Waits for the device."""
        rows = zip(plans, self.picks.tolist(), self.logs.tolist(), self.meant.tolist(), strict=False)
        return [Written(sentences=tuple(_sentences(*row))) for row in rows]


def _step(student: ReportStudent, state: _State) -> None:
    """Feed a token to each row, and settle what comes next."""
    x = student.token_embed(state.token)[:, None]
    bias = state.biases.index_select(2, state.at)
    for layer, (block, text, cross) in enumerate(zip(student.decoder, state.text, state.cross, strict=True)):
        x = x + _attended(block, x, text=text, at=state.at, bias=bias[layer])
        x = x + block.cross(block.norm_cross(x), cross)
        x = x + block.mlp(block.norm2(x))
    best = student.output(student.decoder_norm(x[:, 0])).float().log_softmax(-1).max(-1)
    state.take(best.indices, best.values)


def _attended(
    block: Any, x: Float[Tensor, "b 1 d"], *, text: tuple[Tensor, Tensor], at: Tensor, bias: Float[Tensor, "h 1 m"]
) -> Float[Tensor, "b 1 d"]:
    """Self-attention over the whole cache: what is not written yet is masked by the bias."""
    attn, (keys, values) = block.attn, text
    q, k, v = (
        y.unflatten(-1, (attn.h, -1)).transpose(1, 2)
        for y in project_all(block.norm1(x), attn.q_proj, attn.k_proj, attn.v_proj)
    )
    keys.index_copy_(2, at, k)
    values.index_copy_(2, at, v)
    out = functional.scaled_dot_product_attention(q, keys, values, attn_mask=bias.expand(x.shape[0], -1, -1, -1))
    return attn.out_proj(out.transpose(1, 2).flatten(2))


def _distance_biases(student: ReportStudent) -> Float[Tensor, "l h n n"]:
    """The learned bias of each layer and head for a query at each position on each key, −∞ on what is later."""
    n = student.config.max_tokens
    tables = torch.stack([block.attn.dpe.table.detach() for block in student.decoder]).float()
    places = torch.arange(n, device=tables.device)
    distance = places[:, None] - places[None, :]
    return tables[:, :, distance + n - 1].masked_fill(distance < 0, -torch.inf)


def _sentences(plan: Sequence[int], picks: list[int], logs: list[float], meant: list[int]) -> list[WrittenSentence]:
    found: list[WrittenSentence] = []
    tokens: list[int] = []
    seen: list[float] = []
    for pick, log, what in zip(picks, logs, meant, strict=True):
        if what == _IDLE:
            break  # nothing comes after a row is through
        seen.append(log)
        if what == _TOKEN:
            tokens.append(pick)
            continue
        mean = sum(seen) / len(seen)
        found.append(WrittenSentence(control=plan[len(found)], tokens=tuple(tokens), log_probability=mean))
        tokens, seen = [], []
    return found
