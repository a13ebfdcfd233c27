"""How far a negation or a doubt reaches: what a sentence claims of a finding that it mentions (after NegEx, CheXpert).

NegEx: Chapman et al., J Biomed Inform 34 (2001); CheXpert: Irvin et al., AAAI 2019. The cues are our own. A cue reaches
from its word to the mention unless a clause ends or a new statement begins in between.
"""

import re
from enum import IntEnum

_REACH = 90  # characters over which a doubt reaches


class Claim(IntEnum):
    """What a text claims of a finding; of several claims on one finding the highest counts."""

    SILENT = 0
    DENIED = 1
    DOUBTED = 2
    PROBABLE = 3
    ASSERTED = 4


def mention_claim(sentence: str, *, start: int, end: int) -> Claim:
    """What the lower-case `sentence` claims of the finding that its characters `start` to `end` mention."""
    sentence = blank(_PSEUDO, sentence)
    left, right = clause_bounds(sentence, start=start, end=end)
    before, mention, after = sentence[left:start], sentence[start:end], sentence[end:right]
    near = before[-_REACH:]
    if _DOUBT_AFTER.search(after):
        return Claim.DOUBTED
    if _denied(before) or _NEGATION_AFTER.search(after) or re.search(r"\b(not|without)\b", mention):
        return Claim.DENIED
    if _NEGATED_DOUBT.search(before) and (_DOUBT.search(near) or _PROBABLE.search(near)):
        return Claim.DENIED
    if _DOUBT.search(near) or re.search(r"\b(may be|possibly)\b", mention):
        return Claim.DOUBTED
    if _PROBABLE.search(near) or _PROBABLE_AFTER.search(after) or re.search(r"\b(borderline|probably)\b", mention):
        return Claim.PROBABLE
    return Claim.ASSERTED


def clause_bounds(sentence: str, *, start: int, end: int) -> tuple[int, int]:
    """Where the clause around the characters `start` to `end` begins and ends."""
    breaks = [match.end() for match in _BREAK.finditer(sentence[:start])]
    ending = _BREAK.search(sentence, end)
    return breaks[-1] if breaks else 0, ending.start() if ending else len(sentence)


def blank(pattern: re.Pattern[str], text: str) -> str:
    """The text with every match crossed out, each character in its place."""
    return pattern.sub(lambda match: "~" * len(match.group()), text)


# Words that look like a negation and deny nothing: a change is denied, not the finding.
_PSEUDO = re.compile(
    r"\b(no|not|without)( (significant|interval|definite|appreciable|substantial|obvious|real))*(ly)? "
    r"(chang\w+|increase|decrease|worsening|improvement|progression|difference)( (in|of|to|from))?\b|"
    r"\bnot (significantly|appreciably|substantially) (changed|different|increased|decreased|improved)|"
    r"\bno (doubt|comparison|prior|previous)\b|\bnot only\b|\b(if|whether) or not\b"
)
_BREAK = re.compile(
    r"[;:]|\b(but|however|although|though|except|aside from|apart from|other than|besides|which|otherwise|"
    r"with the exception of|whereas|while|yet|despite|in addition)\b|, (and )?(there (is|are|has|have)|the|this|these) "
)
_NEGATION = re.compile(
    r"\b(no|not|without|w/o|free of|free from|negative for|absence of|absent|never|neither|nor|rather than|clear of|"
    r"clear from|denies|resolution of|resolved|clearing of|cleared|removal of|removed|ruled out|lack of|lacks|"
    r"no longer|exclude[sd]? the presence of|instead of|unlikely( to (be|represent))?)\b"
)
_NEGATION_AFTER = re.compile(
    r"^[^,.]{0,40}?\b(is|are|was|were|has|have)( been)?( \w+ly)? (not|absent|resolved|cleared|removed|excluded|"
    r"ruled out|no longer|unlikely)\b|"
    r"^[^,.]{0,25}\b(not|no longer) (definitely |clearly |well[ -])?(seen|identified|visuali[sz]ed|evident|present|"
    r"appreciated|demonstrated|apparent|noted|found|detected)|"
    r"^[^.]{0,90}?\b(has|have) (since )?(resolved|cleared)|^ may not\b|"
    r"^[^,.]{0,30}?\b(is|are|appears?|remains?) (within (normal )?limits|normal|unremarkable)|"
    r"^[^,.]{0,20}: (none|no|absent|negative)|^ (is|are|seems|appears?) (less likely|unlikely)"
)
# "Probable" and "A versus B" commit the writer; "may be", "question of" and "suggests" do not.
_PROBABLE = re.compile(
    r"\b(probabl[ey]|likely|presum(ed|abl[ey])|apparent(ly)?|borderline|versus|vs|(most|strongly|highly) suggest\w*)\b"
)
_PROBABLE_AFTER = re.compile(
    r"^[^.,]{0,40}?\b(versus|vs|(is|are) (most )?(likely|probable)|(is|are) (favou?red|presumed))\b"
)
_DOUBT = re.compile(
    r"\b(possibl[ey]|possibility|may|might|could|can(not| not) (be )?(entirely |completely )?(exclude\w*|rule out)|"
    r"not exclude\w*|question\w*|suspicio\w+|suspect\w*|concern\w*|equivocal|differential|consider(ed|ations?)?|"
    r"perhaps|maybe|(?<!most )(?<!strongly )(?<!highly )suggest\w*|potential(ly)?|exclude|evaluat\w+ (of|for)|"
    r"rule[ -]out|if)\b"
)
_DOUBT_AFTER = re.compile(
    r"^[^.]{0,60}?\b(can(not| not) be (entirely |completely |definitely )?(excluded|ruled out)|"
    r"not (be )?(entirely |completely )?(excluded|ruled out)|difficult to exclude|(is|are) (possible|suspected)|"
    r"may be (present|considered)|should be considered|(is|are) (questionable|considered|in the differential))|^ ?\?"
)
_NEGATED_DOUBT = re.compile(
    r"\b(no|without|not)\b[^.]{0,40}\b(suspicious|suggest\w*|concern\w*|suspect\w*|questionable|definite|likely|"
    r"apparent)\b"
)
_STOPS_NEGATION = re.compile(
    r"\b(there (is|are)|has|have|shows?|demonstrates?|due to|because of|secondary to|related to|may|likely|"
    r"(is|are|remains?|appears?) (\w+ly )?(present|seen|noted|again|stable|unchanged|enlarged|large|increased|"
    r"prominent|tortuous|calcified|consistent|compatible))\b"
)
_EXCLUSION_DENIED = re.compile(
    r"\b(cannot|can ?not|not|difficult to|hard to) (be )?(entirely |completely |definitely )?(exclude\w*|rule(d)? out)"
)


def _denied(before: str) -> bool:
    if _EXCLUSION_DENIED.search(before):
        return False
    negations = list(_NEGATION.finditer(before))
    return bool(negations) and not _STOPS_NEGATION.search(before[negations[-1].end() :])
