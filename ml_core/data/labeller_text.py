"""A report's text cut into the sentences that may assert a finding: lower case, without headings and other sections."""

import re

# A heading stands at the start of a line or after a full stop and ends with a colon.
_HEADING = re.compile(
    r"(?:^|(?<=[.\n]))[ \t*#]*(?P<name>findings?|impressions?|conclusions?|opinion|summary|report|comments?|"
    r"comparisons?|indications?|history(?: of [\w ]{1,30})?|clinical [\w ]{1,20}|reason for [\w ]{1,30}|"
    r"techniques?|procedure|exam(?:ination)?s?|study|views?|priors?|dates?|recommendations?)"
    r"(?:\s*(?:and|/|&)\s*impression)?[ \t*]*:"
)
# What is written there is asked, done or known from elsewhere, not seen on this study. Such a section ends at the
# next heading or, once something stands in it, at an empty line; the second kind already at the end of its line.
_SILENT = re.compile(r"indication|history|clinical|reason|recommendation")
_SILENT_LINE = re.compile(r"comparison|technique|procedure|exam|study|view|prior|date")
_PARAGRAPH = re.compile(r"\S[^\n]*\n[ \t]*\n")
_LINE = re.compile(r"\S[^\n]*\n")
# A line that goes on in lower case, without being a heading, is one sentence broken by the writer's margin.
_WRAP = re.compile(r"(?<=[^\s.:;?!])[ \t]*\n[ \t]*(?=[a-z])(?![a-z ]{3,40}:)")
_ABBREVIATION = re.compile(r"\b(dr|mr|mrs|st|vs|approx|e\.g|i\.e)\.")


def sentences_split(text: str) -> list[str]:
    """Lower-case sentences of findings and impression; headings, numbering and the other sections go.

    Text before any heading counts; comparison, indication, history, technique and the like do not.
    """
    plain = _asserting(_WRAP.sub(" ", text).lower())
    plain = _ABBREVIATION.sub(lambda match: match.group().replace(".", ""), plain)
    plain = re.sub(r"(?<=\d)\.(?=\d)", "", plain)
    return [part for part in (piece.strip(" \t-\n") for piece in re.split(r"[.\n?!]+|\s\d\)\s", plain)) if part]


def _asserting(text: str) -> str:
    headings = list(_HEADING.finditer(text))
    if not headings:
        return text
    parts = [text[: headings[0].start()]]
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        body = text[heading.end() : following.start() if following else len(text)]
        ending = (
            _PARAGRAPH if _SILENT.match(heading["name"]) else _LINE if _SILENT_LINE.match(heading["name"]) else None
        )
        if ending:
            end = ending.search(body)
            body = body[end.end() :] if end else ""
        parts.append(body)
    return ".\n".join(parts)
