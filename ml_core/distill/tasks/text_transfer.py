"""Unlabelled text of a task's own kind, on which the teacher alone says what is right: a transfer set.

A few thousand labelled rows show a small student little of what its teacher knows (Hinton et al. 2015, section 2; what
TinyBERT makes up by augmentation, Jiao et al. 2020, section 3.2). Rows come of other data sets, or of the task's own
sentences with one word changed, which is how a sentence becomes unacceptable.
"""

from collections.abc import Sequence

import numpy as np

Texts = tuple[str, ...]


def corrupted(rows: Sequence[Texts], *, times: int, rng: np.random.Generator) -> list[Texts]:
    """Each text `times` over with one change a copy: a word left out, said twice, swapped with the next, or replaced

    by one of another row. Words are what spaces part; texts of fewer than three are left out.
    """
    pool = [word for row in rows for text in row for word in text.split()]
    made = []
    for row in rows:
        if min(len(text.split()) for text in row) < 3:
            continue
        for _ in range(times):
            at = int(rng.integers(len(row)))
            changed = _changed(row[at].split(), pool=pool, rng=rng)
            made.append((*row[:at], " ".join(changed), *row[at + 1 :]))
    return made


def unseen(rows: Sequence[Texts], *, held: Sequence[Texts]) -> list[Texts]:
    """The rows, each once, without those that stand among the held-out ones."""
    out = set(held)
    return [row for row in dict.fromkeys(rows) if row not in out]


def _changed(words: list[str], *, pool: Sequence[str], rng: np.random.Generator) -> list[str]:
    at = int(rng.integers(len(words) - 1))
    match int(rng.integers(4)):
        case 0:
            return words[:at] + words[at + 1 :]
        case 1:
            return words[: at + 1] + words[at:]
        case 2:
            return [*words[:at], words[at + 1], words[at], *words[at + 2 :]]
        case _:
            return [*words[:at], pool[int(rng.integers(len(pool)))], *words[at + 1 :]]
