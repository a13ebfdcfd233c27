"""A rule labeller: what a report's text says of each of the 14 CheXpert findings, negation and doubt in their scope.

The scheme (mention, negation, uncertainty, aggregation) is CheXpert's (Irvin et al., AAAI 2019); the rules are our own,
written on simulated reports and on the train split of the IU reports.
"""

import re

from ml_core.contracts import FindingState
from ml_core.data.findings import FINDINGS, NO_FINDING

_MENTIONS: dict[str, str] = {
    "Enlarged Cardiomediastinum": r"widen(ed|ing)[^.;]{0,25}mediastin\w*|mediastin\w*[^.;]{0,25}widen(ed|ing)|"
    r"(enlarged|prominent) (cardio)?mediastin\w+|mediastinal (enlargement|mass)",
    "Cardiomegaly": r"cardiomegaly|(enlarged|increased|large) (heart|cardiac silhouette|cardiac)|cardiac enlargement|"
    r"(heart|cardiac silhouette|cardiac size|cardiac contour|cardiac shadow|cardiomediastinal silhouette)"
    r"( size)?[^.;,]{0,30}?\b(enlarged|increased|prominent|large)|enlargement of the (heart|cardiac)",
    "Lung Opacity": r"opacit(y|ies)|opacification|infiltrates?\b|air ?space disease|densit(y|ies)\b|haziness|"
    r"hazy\b|interstitial markings",
    "Lung Lesion": r"nodules?\b|\bmass(es)?\b(?! effect)|neoplasm|\btumou?r|metasta(sis|ses)|"
    r"(nodular|lung|pulmonary) lesions?\b",
    "Edema": r"o?edema\b|vascular congestion|pulmonary congestion|congestive (heart )?failure|\bchf\b|"
    r"volume overload|cephalization|kerley",
    "Consolidation": r"consolidat\w+",
    "Pneumonia": r"pneumonia|pneumonic|pneumonitis",
    "Atelectasis": r"atelecta\w+|volume loss",
    "Pneumothorax": r"(hydro)?pneumothora(x|ces)",
    "Pleural Effusion": r"(?<!subpleural )effusions?|pleural fluid|hydropneumothorax",
    "Pleural Other": r"pleural(-| )(thickening|scarring|plaques?|calcification)|fibrothorax|thickening of the pleura",
    "Fracture": r"fractures?\b|fractured",
    "Support Devices": r"\b(tubes?|catheters?|pacemakers?|icd|defibrillator|picc|port-?a-?cath|mediport|"
    r"sternotomy|wires|leads|stents?|clips|"
    r"devices?|prosthe\w+|hardware|valve replacement|(central|venous) lines?|lines? (and|or) tubes?|"
    r"line or tube|introducer|sutures?)\b",
}  # fmt: skip
_PATTERNS = {name: re.compile(pattern) for name, pattern in _MENTIONS.items()}

# Words that belong to an anatomy or a phrase and are no mention.
_IGNORE = re.compile(
    r"no acute (bony|osseous) (abnormality|findings?)|bone densit(y|ies)|soft tissue densit(y|ies)|"
    r"calcified (nodule|densit(y|ies)|granuloma\w*)|"
    r"pericardial effusions?|(pulmonary|lung) markings are normal|(low|decreased|increased) bone density|nodal\b|"
    r"nipple shadows?|lines? of the|epicardial|degenerative lesions?|nodular calcifi\w+|lytic|"
    r"calcified[^.;,]{0,20}(nodules?|densit(y|ies)|opacit(y|ies))|nodules?[^.;,]{0,12}calcified"
)
# Statements that deny a finding without naming it.
_NORMAL = {
    "Lung Opacity": re.compile(
        r"lungs? (fields )?(are|is|appear\w*|remain\w*)?\s*(otherwise |grossly |well-?expanded and |"
        r"well aerated and |symmetrically |"
        r"bilaterally |both |essentially |mostly )*clear|clear lungs|lungs:? clear|well-expanded and clear"
    ),
    "Cardiomegaly": re.compile(
        r"(heart|cardiac|cardiomediastinal|cardio mediastinal)[^.;]{0,60}\b(normal|unremarkable|within normal|"
        r"not enlarged|stable|negative)|"
        r"normal (heart|cardiac|cardiomediastinal)|upper limits of normal"
    ),
    "Enlarged Cardiomediastinum": re.compile(
        r"(cardio)?mediastin\w*[^.;]{0,60}\b(normal|unremarkable|not widened|within normal)|"
        r"normal (cardio)?mediastin\w*|"
        r"normal (heart|cardiac)[^.;]{0,20} mediastin\w*"
    ),
}  # fmt: skip
_BREAK = re.compile(
    r"\b(but|however|although|though|except|aside from|apart from|which|with the exception of|otherwise)\b|[;:]"
)
_NEGATION = re.compile(
    r"\b(no|not|without|free of|negative for|absence of|absent|never|neither|nor|rather than|clear of|denies|"
    r"resolution of|resolved|"
    r"removal of|removed|ruled out|rule out|lack of|exclude[sd]? the presence of)\b"
)
_NEGATION_AFTER = re.compile(
    r"^[^,.]{0,40}?\b(is|are|was|were|has|have)( been)? (not|absent|resolved|cleared|removed|excluded|"
    r"ruled out)\b|^[^,.]{0,25}\bnot (seen|identified|"
    r"visualized|evident|present|appreciated|demonstrated)|^ ?(has|have) resolved|^[^,.]{0,20}: (none|no|absent|"
    r"negative)"
)
_DOUBT = re.compile(
    r"\b(possible|possibly|may|might|could|cannot (be )?exclude\w*|cannot rule out|can ?not exclude|"
    r"not exclude\w*|questionable|question of|suspicious|suspicion|suspect\w*|"
    r"probable|probably|concern\w*|equivocal|borderline|versus|vs|differential|consider\w*|possibility|perhaps|"
    r"indeterminate)\b"
)
_DOUBT_AFTER = re.compile(
    r"^[^.]{0,60}?\b(cannot be (entirely |completely )?(excluded|ruled out)|can ?not be excluded|not (entirely |"
    r"completely )?excluded|(is|are) possible|(is|are) suspected|"
    r"(is|are) not excluded|may be (present|considered)|versus|vs|should be considered|(is|are) questionable)"
)
_NEGATED_DOUBT = re.compile(
    r"\b(no|without|not)\b[^.]{0,40}\b(suspicious|concern\w*|suspect\w*|questionable|definite)\b"
)
_STOPS_NEGATION = re.compile(
    r"\b(there (is|are)|has|shows?|demonstrates?|consistent with|compatible with|reflect\w*|due to|because of)\b"
)
_ORDER = {FindingState.ABSENT: 0, FindingState.NEGATIVE: 1, FindingState.UNCERTAIN: 2, FindingState.POSITIVE: 3}


def label_report(text: str) -> dict[str, FindingState]:
    """State of each of the 14 findings; what is said most strongly anywhere counts.

    "No Finding" is positive where a text says something and asserts or suspects nothing but devices.
    """
    states = dict.fromkeys(FINDINGS, FindingState.ABSENT)
    for sentence in sentences_split(text):
        for name, state in label_sentence(sentence).items():
            if _ORDER[state] > _ORDER[states[name]]:
                states[name] = state
    told = {FindingState.POSITIVE, FindingState.UNCERTAIN}
    ill = any(state in told for name, state in states.items() if name not in (NO_FINDING, "Support Devices"))
    if text.strip() and not ill:
        states[NO_FINDING] = FindingState.POSITIVE
    return states


def sentences_split(text: str) -> list[str]:
    """Lower-case sentences; section headings and numbering go."""
    plain = re.sub(r"\b(findings|impression)\s*:", ". ", text.lower())
    plain = re.sub(r"(?<=\d)\.(?=\d)", "", re.sub(r"\bdr\.", "dr", plain))
    return [part for part in (piece.strip(" \t-\n") for piece in re.split(r"[.\n?!]+|\s\d\)\s", plain)) if part]


def label_sentence(sentence: str) -> dict[str, FindingState]:
    """State of each finding that one sentence (lower case) mentions."""
    states: dict[str, FindingState] = {}
    for name, pattern in _NORMAL.items():
        if pattern.search(sentence):
            states[name] = FindingState.NEGATIVE
    cleaned = _IGNORE.sub(lambda match: " " * len(match.group()), sentence)
    for name, pattern in _PATTERNS.items():
        for match in pattern.finditer(cleaned):
            state = _state(cleaned, match.start(), match.end())
            if _ORDER[state] > _ORDER[states.get(name, FindingState.ABSENT)]:
                states[name] = state
    return states


def _state(sentence: str, start: int, end: int) -> FindingState:
    """Negation and doubt reach from their word to the mention unless a clause ends in between."""
    before, after = sentence[:start], sentence[end:]
    breaks = [match.end() for match in _BREAK.finditer(before)]
    before = before[breaks[-1] :] if breaks else before
    ending = _BREAK.search(after)
    after = after[: ending.start()] if ending else after
    mention = sentence[start:end]
    if _DOUBT_AFTER.search(after):
        return FindingState.UNCERTAIN
    if _negated(before) or _NEGATION_AFTER.search(after) or re.search(r"\bnot\b", mention):
        return FindingState.NEGATIVE
    if _DOUBT.search(before[-70:]) or re.search(r"\b(borderline|may be)\b", mention):
        return FindingState.NEGATIVE if _NEGATED_DOUBT.search(before) else FindingState.UNCERTAIN
    return FindingState.POSITIVE


def _negated(before: str) -> bool:
    if re.search(r"\b(cannot|can ?not|not) (be )?(entirely |completely )?exclude\w*|cannot rule out", before):
        return False
    negations = list(_NEGATION.finditer(before))
    if not negations:
        return False
    between = before[negations[-1].end() :]
    return not _STOPS_NEGATION.search(between)
