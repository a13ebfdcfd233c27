"""A rule labeller: what a report's text says of each finding, negation and doubt in their scope.

The scheme (mention, negation, uncertainty, aggregation) is CheXpert's (Irvin et al., AAAI 2019); the rules are our own,
written on simulated reports and on the train split of the IU reports.
"""

from ml_core.contracts import FindingState
from ml_core.data.findings import FINDINGS
from ml_core.data.labeller_chexpert import CHEXPERT
from ml_core.data.labeller_indexed import INDEXED
from ml_core.data.labeller_scheme import TOLD, Scheme
from ml_core.data.labeller_scope import Claim
from ml_core.data.labeller_sides import mention_sides
from ml_core.data.labeller_text import sentences_split

__all__ = ["CHEXPERT", "INDEXED", "label_findings", "label_report", "label_sentence", "sentences_split", "sides_of"]


def label_report(text: str) -> dict[str, FindingState]:
    """State of each of the 14 findings; what is said most strongly anywhere counts.

    "No Finding" is positive where a text says something and asserts or suspects nothing but devices.
    """
    states = label_findings(text, scheme=CHEXPERT)
    return {name: states[name] for name in FINDINGS}


def label_findings(text: str, *, scheme: Scheme = INDEXED) -> dict[str, FindingState]:
    """State of each finding of a scheme, by default the 17 under which the IU reports were indexed by hand.

    Only findings and impression speak (`sentences_split`). "No finding" is positive where they say something and
    neither assert nor suspect anything abnormal.
    """
    sentences = sentences_split(text)
    claims = dict.fromkeys(scheme.findings, Claim.SILENT)
    for sentence in sentences:
        for name, claim in scheme.claims(sentence).items():
            claims[name] = max(claim, claims[name])
    states = {name: scheme.state(claim) for name, claim in claims.items()}
    ill = any(state in TOLD for name, state in states.items() if name not in scheme.beside)
    if sentences and not ill and not any(scheme.abnormal(sentence) for sentence in sentences):
        states[scheme.no_finding] = FindingState.POSITIVE
    return states


def label_sentence(sentence: str, *, scheme: Scheme = CHEXPERT) -> dict[str, FindingState]:
    """State of each finding that one sentence (lower case) mentions."""
    return {name: scheme.state(claim) for name, claim in scheme.claims(sentence).items()}


def sides_of(sentence: str, *, finding: str) -> frozenset[str]:
    """Of "left" and "right" the sides on which a sentence (lower case) places a finding of either scheme.

    Bilateral is both; empty where no side is named or the finding is not asserted or suspected. KeyError for a name
    of neither scheme.
    """
    scheme = CHEXPERT if finding in CHEXPERT.mentions else INDEXED
    return mention_sides(sentence, finding=finding, scheme=scheme)
