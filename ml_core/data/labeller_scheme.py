"""A labelling scheme: the findings it knows, how reports word them, and what counts as stated."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ml_core.contracts import FindingState
from ml_core.data.labeller_scope import Claim, blank, mention_claim

NOTHING = re.compile(r"(?!)")  # matches nowhere
TOLD = (FindingState.POSITIVE, FindingState.UNCERTAIN)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """The patterns are searched in one lower-case sentence at a time.

    `lookalikes` are crossed out before a finding is looked for, `ignored` before any is. `normal` denies a finding
    without naming it. `other` is abnormal, though none of the scheme's findings; `beside` are the findings that leave
    "no finding" true. `probable` is the state of what a report calls probable.
    """

    no_finding: str
    mentions: Mapping[str, re.Pattern[str]]
    lookalikes: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    ignored: re.Pattern[str] = NOTHING
    normal: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    other: re.Pattern[str] = NOTHING
    beside: frozenset[str] = frozenset()
    probable: FindingState = FindingState.UNCERTAIN

    @property
    def findings(self) -> tuple[str, ...]:
        """Every finding, "no finding" first."""
        return (self.no_finding, *self.mentions)

    def claims(self, sentence: str) -> dict[str, Claim]:
        """The strongest claim of a sentence on each finding that it mentions or calls normal."""
        claims = {name: Claim.DENIED for name, pattern in self.normal.items() if pattern.search(sentence)}
        for name in self.mentions:
            for claim, _, _ in self.places(sentence, finding=name):
                claims[name] = max(claim, claims.get(name, Claim.SILENT))
        return claims

    def places(self, sentence: str, *, finding: str) -> Iterator[tuple[Claim, int, int]]:
        """Each mention of a finding in a sentence: the claim, and from which character to which."""
        cleaned = blank(self.lookalikes.get(finding, NOTHING), blank(self.ignored, sentence))
        for match in self.mentions[finding].finditer(cleaned):
            yield mention_claim(cleaned, start=match.start(), end=match.end()), match.start(), match.end()

    def state(self, claim: Claim) -> FindingState:
        """The state that a claim stands for in this scheme."""
        return {
            Claim.SILENT: FindingState.ABSENT,
            Claim.DENIED: FindingState.NEGATIVE,
            Claim.DOUBTED: FindingState.UNCERTAIN,
            Claim.PROBABLE: self.probable,
            Claim.ASSERTED: FindingState.POSITIVE,
        }[claim]

    def abnormal(self, sentence: str) -> bool:
        """Whether a sentence asserts or suspects something that no finding of the scheme names."""
        return any(
            mention_claim(sentence, start=match.start(), end=match.end()) > Claim.DENIED
            for match in self.other.finditer(sentence)
        )


def compiled(patterns: Mapping[str, str]) -> dict[str, re.Pattern[str]]:
    """A table of patterns, compiled."""
    return {name: re.compile(pattern) for name, pattern in patterns.items()}
