"""Greedy decoding of Llama-shaped models: a cache that stays in place, one graph a bucket, few waits for the device.

Prompts are padded on the right; a row's slot in the cache is its position, so rows of all lengths go on side by side
and none sees another, nor any padding. On CUDA each step is a replay, captured once for each pair of rows and length;
elsewhere the same step runs eagerly, and `describe` says so.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ml_core.errors import InputError
from ml_core.models.llama import Cache, Llama, LlamaConfig, Source, Weights, random_source
from ml_core.serving.graphs import MOST_BUCKETS, GraphPool, compiled_step

Kind = Literal["bf16", "int8"]
ROWS = (1, 2, 4, 8, 16)
_MOST_ROWS = 16
_EVERY = 8  # tokens between two looks at the device; a stop is seen up to so many steps late


class DecodeEngine:
    """A model and its caches. `generate` may be called from several threads: they take turns."""

    def __init__(
        self,
        model: Llama,
        *,
        rows: Sequence[int] = ROWS,
        lengths: Sequence[int] = (),
        every: int = _EVERY,
        compiled: bool = False,
    ) -> None:
        """rows, lengths: the buckets, at most 16 pairs (graphs on CUDA); a cache for each number of rows, as long as
        the largest length, is made when it is first needed. lengths: of prompt and answer together; unless given 256,
        1024 and 4096 as far as the model reaches. every: tokens between two waits for the device. compiled: a step is
        compiled by torch before it is captured (fewer, larger kernels; each bucket takes its time when first needed).
        """
        self.model, self.every, self.compiled = model, every, compiled
        most = model.config.max_positions
        self.lengths = sorted(lengths) if lengths else sorted({min(n, most) for n in (256, 1024, 4096)})
        self.rows = sorted(rows)
        if not self.rows or self.rows[0] < 1 or self.rows[-1] > _MOST_ROWS:
            raise InputError(f"rows: {list(rows)} are not between 1 and {_MOST_ROWS}")
        if self.lengths[0] < 1 or self.lengths[-1] > most:
            raise InputError(f"lengths: {self.lengths} are not between 1 and the model's {most} positions")
        if len(self.rows) * len(self.lengths) > MOST_BUCKETS:
            raise InputError(
                f"rows, lengths: {len(self.rows)} × {len(self.lengths)} are more than {MOST_BUCKETS} buckets"
            )
        if every < 1:
            raise InputError(f"every: {every} is no number of tokens")
        self._states: dict[int, _State] = {}
        self._pool = GraphPool(model.device) if model.device.type == "cuda" else None
        self._lock = RLock()

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        device: torch.device | str,
        dtype: torch.dtype = torch.bfloat16,
        weights: Kind = "bf16",
        rows: Sequence[int] = ROWS,
        lengths: Sequence[int] = (),
        compiled: bool = False,
    ) -> "DecodeEngine":
        """From a transformers folder (LlamaForCausalLM). weights: "bf16" keeps them in `dtype`, "int8" by channel.

        Raises ArtifactError for a damaged folder, InputError for a model that is not known here.
        """
        model = Llama.load(folder, device=device, dtype=dtype, weights=_weights(weights))
        return cls(model, rows=rows, lengths=lengths, compiled=compiled)

    @classmethod
    def of(
        cls,
        config: LlamaConfig,
        *,
        device: torch.device | str,
        source: Source | None = None,
        dtype: torch.dtype = torch.bfloat16,
        weights: Kind = "bf16",
        rows: Sequence[int] = ROWS,
        lengths: Sequence[int] = (),
        compiled: bool = False,
    ) -> "DecodeEngine":
        """From a geometry and tensors by name; without a source the weights are random (speed only)."""
        source = source or random_source(seed=0, device=device)
        model = Llama(config, source, device=device, dtype=dtype, weights=_weights(weights))
        return cls(model, rows=rows, lengths=lengths, compiled=compiled)

    @torch.inference_mode()
    def generate(
        self, ids: Sequence[Sequence[int]], *, max_new_tokens: int, stop: Collection[int] = ()
    ) -> list[list[int]]:
        """The most probable next token, again and again: what each row gets, up to and without the first of `stop`.

        ids: 1 to 16 prompts. Raises InputError where a prompt is empty or does not fit with its answer.
        """
        self._check(ids, max_new_tokens=max_new_tokens)
        stops = frozenset(stop)
        with self._lock:
            longest = max(map(len, ids))
            state = self._state(len(ids), most=longest + max_new_tokens - 1)
            firsts = self._prefill(ids, state=state)
            answers: list[list[int]] = [[first] for first in firsts]
            done, at = 1, longest
            while done < max_new_tokens and not all(stops & set(each) for each in answers):
                count = min(self.every, max_new_tokens - done)
                for row, new in zip(answers, self._steps(state, count=count, at=at), strict=False):
                    row.extend(new)
                done, at = done + count, at + count
        return [_until(each, stops=stops) for each in answers]

    @torch.inference_mode()
    def logits(self, ids: Sequence[Sequence[int]]) -> Float[Tensor, "b v"]:
        """Logits of the token after each prompt, in fp32."""
        self._check(ids, max_new_tokens=1)
        padded, lengths = self._padded(ids)
        with self._lock:
            return self.model.prefill(padded, lengths, cache=self.model.empty_cache(b=len(ids), m=padded.shape[1]))

    def describe(self) -> str:
        """What runs where: lines to print."""
        c = self.model.config
        weights = (
            "int8 by output channel (gemv_int8), the embedding in" if self.model.weights == "int8" else "weights in"
        )
        steps = "compiled" if self.compiled else "eager"
        if self.model.fuses(1) and not self.compiled:
            steps += " steps, those of one row by five kernels a layer (decode_row)"
        else:
            steps += " steps"
        graphs = "no CUDA graphs" if self._pool is None else f"CUDA graphs: {self._pool.report()}"
        return "\n".join(
            [
                f"Llama of {c.layers} layers × {c.d}, {c.heads} heads on {c.kv_heads}, {weights} {self.model.dtype}",
                f"{steps}, {graphs} on {self.model.device}; the prompt is read eagerly",
                f"rows {self.rows}, lengths {self.lengths}; a look at the device every {self.every} tokens",
                *(f"  {b} rows × {m}: {n} steps" for b, s in self._states.items() for m, n in s.ran.items()),
            ]
        )

    def _state(self, b: int, *, most: int) -> "_State":
        """The state of the smallest number of rows that takes b, every length it will need captured."""
        rows = next(each for each in self.rows if each >= b)
        if rows not in self._states:
            self._states[rows] = _State.empty(self.model, b=rows, m=self.lengths[-1], every=self.every)
        state = self._states[rows]
        for m in self._needed(most):
            if m not in state.steps:
                state.steps[m] = self._step(state, m=m)
        return state

    def _step(self, state: "_State", *, m: int) -> Callable[[], None]:
        """A step over m slots: as it is or compiled, on CUDA captured."""
        step: Callable[[], None] = partial(state.step, self.model, m=m, plain=self.compiled)
        if self.compiled:
            step = compiled_step(step)
        if self._pool is None:
            return step
        # warming up walks on, and must start where a step may write
        state.positions.zero_()
        state.at.zero_()
        return self._pool.capture(step, warm_ups=1).replay

    def _needed(self, most: int) -> list[int]:
        """The lengths up to the first that holds `most` positions."""
        return [m for m, before in zip(self.lengths, [0, *self.lengths], strict=False) if before < most]

    def _prefill(self, ids: Sequence[Sequence[int]], *, state: "_State") -> list[int]:
        padded, lengths = self._padded(ids)
        picks = self.model.prefill(padded, lengths, cache=state.cache).argmax(-1)
        state.tokens.zero_()
        state.positions.zero_()
        state.tokens[: len(ids)] = picks
        state.positions[: len(ids)] = lengths
        return picks.tolist()

    def _steps(self, state: "_State", *, count: int, at: int) -> list[list[int]]:
        """`count` tokens for every row; the longest row stands at position `at`. Waits for the device once."""
        state.at.zero_()
        for position in range(at, at + count):
            m = next(each for each in self.lengths if each > position)
            state.ran[m] = state.ran.get(m, 0) + 1
            state.steps[m]()
        # who holds the lock has waited for the device before letting go, so threads on other streams find all written
        return state.history[:, :count].tolist()

    def _padded(self, ids: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "b n"], Int[Tensor, " b"]]:
        lengths = [len(each) for each in ids]
        rows = [[*each, *[0] * (max(lengths) - len(each))] for each in ids]
        return (torch.tensor(rows, device=self.model.device), torch.tensor(lengths, device=self.model.device))

    def _check(self, ids: Sequence[Sequence[int]], *, max_new_tokens: int) -> None:
        if not 1 <= len(ids) <= self.rows[-1]:
            raise InputError(f"ids: {len(ids)} rows; this engine takes 1 to {self.rows[-1]}")
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens: {max_new_tokens} is not at least 1")
        for number, row in enumerate(ids):
            if not row or not all(0 <= each < self.model.config.vocabulary for each in row):
                raise InputError(f"ids: row {number} is empty or holds no token of {self.model.config.vocabulary}")
            if len(row) + max_new_tokens - 1 > self.lengths[-1]:
                raise InputError(
                    f"ids: row {number} of {len(row)} tokens and {max_new_tokens} new ones exceed {self.lengths[-1]}"
                )


@dataclass(kw_only=True)
class _State:
    """What a step reads and rewrites, in memory that stays in place: the rows' last tokens (b), positions (b), caches,
    and the tokens since the host last looked (b, every), `at` of which are written."""

    tokens: Tensor
    positions: Tensor
    at: Tensor
    history: Tensor
    cache: Cache
    steps: dict[int, Callable[[], None]] = field(default_factory=dict)
    ran: dict[int, int] = field(default_factory=dict)

    @classmethod
    def empty(cls, model: Llama, *, b: int, m: int, every: int) -> "_State":
        integers = [
            torch.zeros(shape, dtype=torch.int64, device=model.device) for shape in ((b,), (b,), (1,), (b, every))
        ]
        tokens, positions, at, history = integers
        return cls(tokens=tokens, positions=positions, at=at, history=history, cache=model.empty_cache(b=b, m=m))

    def step(self, model: Llama, *, m: int, plain: bool) -> None:
        """Every row takes its most probable token. Capturable: positions are a tensor, nothing is read back.

        plain: by torch's operators whatever the rows, which torch's compiler can join.
        """
        step = model.step_plain if plain else model.step
        picks = step(self.tokens, self.positions, cache=self.cache, m=m).argmax(-1)
        self.history.index_copy_(1, self.at, picks[:, None])
        self.tokens.copy_(picks)
        self.positions.add_(1)
        self.at.add_(1)


def _until(tokens: list[int], *, stops: frozenset[int]) -> list[int]:
    return next((tokens[:at] for at, each in enumerate(tokens) if each in stops), tokens)


def _weights(kind: str) -> Weights:
    if kind not in ("bf16", "int8"):
        raise InputError(f"weights: {kind!r} is neither bf16 nor int8")
    return "int8" if kind == "int8" else "dense"
