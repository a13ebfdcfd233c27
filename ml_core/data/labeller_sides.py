"""Left, right or both: on which side a sentence places a finding that it asserts or suspects."""

import re

from ml_core.data.labeller_scheme import Scheme
from ml_core.data.labeller_scope import Claim, blank, clause_bounds

BOTH = frozenset({"left", "right"})
_SIDES = re.compile(
    r"\b(?P<both>bilateral(ly)?|both|bi(basilar|basal|apical|hilar))\b|"
    r"\b(?P<left>left|lingula\w*)\b|\b(?P<right>right|middle lobe)\b"
)
_PAIR = re.compile(r"\b(lungs|bases|apices)\b")  # two, where no side is named beside them
# Parts of the heart, and a side that is only compared with.
_LOOKALIKE = re.compile(
    r"\b(left|right) (atri\w+|ventric\w+|heart|aort\w+|main ?stem)\b|\bcompared (to|with) the (left|right)\b"
)
_JOIN = re.compile(r",|\b(and|with|as well as)\b")


def mention_sides(sentence: str, *, finding: str, scheme: Scheme) -> frozenset[str]:
    """The sides of every mention of the finding, together.

    A side stands before its finding ("left basilar opacity") or behind it ("opacity at the left base"), and other
    findings lie in between as walls; a mention without a side of its own takes those of its clause.
    """
    walls = [place[1:] for name in scheme.mentions for place in scheme.places(sentence, finding=name)]
    plain = blank(_LOOKALIKE, sentence)
    sides: frozenset[str] = frozenset()
    for claim, start, end in scheme.places(sentence, finding=finding):
        if claim <= Claim.DENIED:
            continue
        left, right = clause_bounds(sentence, start=start, end=end)
        before = _before(plain, walls, left=left, start=start)
        after = _after(plain, walls, right=right, end=end)
        sides |= _named(plain[start:end]) or _named(before) or _named(after) or _named(plain[left:right])
    return sides


def _before(plain: str, walls: list[tuple[int, int]], *, left: int, start: int) -> str:
    """From the wall before the mention; where a joined part nearer to the mention names a side, that part alone."""
    wall = max((end for _, end in walls if left < end <= start), default=0)
    part = plain[max(left, wall) : start]
    joins = [match.end() for match in _JOIN.finditer(part)] if wall else []
    return next((part[join:] for join in reversed(joins) if _named(part[join:])), part)


def _after(plain: str, walls: list[tuple[int, int]], *, right: int, end: int) -> str:
    """To the wall behind the mention, less what belongs to that wall; else to the first comma behind a side."""
    wall = min((start for start, _ in walls if end <= start < right), default=0)
    part = plain[end : wall or right]
    if wall:
        joins = [match.start() for match in _JOIN.finditer(part)]
        return part[: joins[-1]] if joins else part
    pieces = part.split(",")
    return next((piece for piece in pieces if _named(piece)), part)


def _named(text: str) -> frozenset[str]:
    found = {str(match.lastgroup) for match in _SIDES.finditer(text)}
    return BOTH if "both" in found or (not found and _PAIR.search(text)) else frozenset(found)
