"""Word overlap of drafts with reference reports: BLEU-4, ROUGE-L, METEOR and CIDEr as pycocoevalcap computes them.

Tokens: lower case, every point is one, other marks are dropped, no cut at 60 tokens. One reference a candidate. BLEU is
the corpus's; CIDEr's document frequencies are those of the references at hand; METEOR is version 1.5, in Java.
"""

import atexit
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge

_MARKS = re.compile(r"[^a-z0-9]+")
_N = 4
_TINY, _SMALL = 1e-15, 1e-9  # as in pycocoevalcap's BLEU
RESAMPLES = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class TextScore:
    """One measure of a corpus, and its 95 % percentile interval over resampled reports."""

    value: float
    low: float
    high: float


def has_java() -> bool:
    """METEOR needs Java; the other measures do not."""
    return shutil.which("java") is not None


def tokens(text: str) -> str:
    """The tokens of `text`, a space between two. A text without any gives ".": the scorers divide by the length."""
    parts = [" ".join(_MARKS.sub(" ", part).split()) for part in text.lower().split(".")]
    return " ".join(" . ".join(parts).split()) or "."


def text_scores(candidates: Sequence[str], references: Sequence[str], *, meteor: bool = True) -> dict[str, TextScore]:
    """BLEU-4, ROUGE-L, CIDEr and, with `meteor`, METEOR of n candidates against one reference each; n at least 2.

    BLEU-4, ROUGE-L and METEOR lie in [0, 1], CIDEr in [0, 10]. Raises ValueError where the counts differ or there are
    fewer than two, and RuntimeError where METEOR is asked for and there is no Java.
    """
    if len(candidates) != len(references) or len(references) < 2:
        raise ValueError(f"{len(candidates)} candidates, {len(references)} references: as many, and at least two")
    if meteor and not has_java():
        raise RuntimeError("METEOR 1.5 needs Java on the PATH")
    said, wanted = [tokens(text) for text in candidates], [tokens(text) for text in references]
    rows = np.random.default_rng(0).integers(len(said), size=(RESAMPLES, len(said)))
    cider = _cider(said, wanted)
    rouge = np.asarray([Rouge().calc_score([a], [b]) for a, b in zip(said, wanted, strict=True)])
    scores = {
        "BLEU-4": _bleu(said, wanted, rows=rows),
        "ROUGE-L": _mean(rouge, rows=rows),
        "CIDEr": _mean(cider, rows=rows),
    }
    return scores | ({"METEOR": _meteor(said, wanted, rows=rows)} if meteor else {})


def _mean(values: NDArray[np.float64], *, rows: NDArray[np.int64]) -> TextScore:
    return _scored(float(values.mean()), values[rows].mean(1))


def _scored(value: float, resampled: NDArray[np.float64]) -> TextScore:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return TextScore(value=value, low=float(low), high=float(high))


def _cider(said: list[str], wanted: list[str]) -> NDArray[np.float64]:
    scorer = CiderScorer()
    for candidate, reference in zip(said, wanted, strict=True):
        scorer += (candidate, [reference])
    return np.asarray(scorer.compute_score()[1])


def _bleu(said: list[str], wanted: list[str], *, rows: NDArray[np.int64]) -> TextScore:
    scorer = BleuScorer(n=_N)
    for candidate, reference in zip(said, wanted, strict=True):
        scorer += (candidate, [reference])
    value = float(scorer.compute_score(option="closest")[0][_N - 1])
    counted = [[*each["correct"], *each["guess"], each["testlen"], each["reflen"][0]] for each in scorer.ctest]
    return _scored(value, np.asarray([_bleu_of(total) for total in np.asarray(counted, dtype=float)[rows].sum(1)]))


def _bleu_of(total: NDArray[np.float64]) -> float:
    """pycocoevalcap's corpus BLEU-4 from sums: correct and guessed n-grams of each order, lengths of both sides."""
    correct, guessed, (ours, theirs) = total[:_N], total[_N : 2 * _N], total[2 * _N :]
    value = float(np.prod((correct + _TINY) / (guessed + _SMALL))) ** (1 / _N)
    ratio = (ours + _TINY) / (theirs + _SMALL)
    return value * float(np.exp(1 - 1 / ratio)) if ratio < 1 else value


def _meteor(said: list[str], wanted: list[str], *, rows: NDArray[np.int64]) -> TextScore:
    """The corpus's METEOR; each resample is a sum of the same reports' statistics, by the same program."""
    program = _meteor_program()
    counted = [program._stat(a, [b]) for a, b in zip(said, wanted, strict=True)]
    value = _meteor_of(program, counted)
    return _scored(value, np.asarray([_meteor_of(program, [counted[row] for row in draw]) for draw in rows]))


@cache
def _meteor_program() -> Meteor:
    """One Java for all corpora: it reads 60 MB of paraphrases before its first answer."""
    program = Meteor()
    atexit.register(program.meteor_p.kill)
    return program


def _meteor_of(program: Meteor, counted: Sequence[str]) -> float:
    program.meteor_p.stdin.write(f"EVAL ||| {' ||| '.join(counted)}\n".encode())
    program.meteor_p.stdin.flush()
    for _ in counted:
        program.meteor_p.stdout.readline()
    return float(program.meteor_p.stdout.readline())
