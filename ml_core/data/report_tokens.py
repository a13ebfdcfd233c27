"""Tokens of reports: byte-level BPE trained on simulated wording, and one control token for each thing to be said."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ml_core.contracts import FindingState, Section
from ml_core.data.findings import FINDINGS
from ml_core.data.phantom_report import Report

PAD, STOP = 0, 1
_SAID = (FindingState.POSITIVE, FindingState.NEGATIVE, FindingState.UNCERTAIN)
STATE_ORDER: tuple[FindingState, ...] = (*_SAID, FindingState.ABSENT)
STATE_INDEX: dict[FindingState, int] = {state: index for index, state in enumerate(STATE_ORDER)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """What the next sentence is to say, and where."""

    section: Section
    finding: str
    state: FindingState


_CONTROLS = tuple(
    Control(section=section, finding=finding, state=state)
    for section in Section
    for finding in FINDINGS
    for state in _SAID
)
_CONTROL_ID = {control: index + 2 for index, control in enumerate(_CONTROLS)}
FIRST_TEXT = 2 + len(_CONTROLS)


class ReportTokenizer:
    """Wraps a `tokenizers` BPE whose first ids are PAD, STOP and the control tokens."""

    def __init__(self, json: str) -> None:
        self._tokenizer = Tokenizer.from_str(json)

    @classmethod
    def train(cls, texts: Iterable[str], *, vocabulary: int = 1024) -> "ReportTokenizer":
        """Learn merges on sentences."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        names = ["[PAD]", "[STOP]", *(f"[{c.section.value}|{c.finding}|{c.state.value}]" for c in _CONTROLS)]
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=names,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer.to_str())

    @property
    def json(self) -> str:
        """The whole tokenizer as JSON, as it is stored in the artifact."""
        return self._tokenizer.to_str()

    @property
    def size(self) -> int:
        """How many ids there are."""
        return self._tokenizer.get_vocab_size()

    def control(self, control: Control) -> int:
        """Id of a control token."""
        return _CONTROL_ID[control]

    def control_of(self, token: int) -> Control:
        """The control that an id stands for."""
        return _CONTROLS[token - 2]

    def encode_report(self, report: Report, *, limit: int) -> list[int]:
        """Each sentence as its control, its text, STOP; whole sentences only, at most `limit` ids."""
        ids: list[int] = []
        for sentence in report.sentences:
            control = Control(section=sentence.section, finding=sentence.finding, state=sentence.state)
            text = self._tokenizer.encode(sentence.text, add_special_tokens=False).ids
            if len(ids) + len(text) + 2 > limit:
                break
            ids += [self.control(control), *text, STOP]
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of the tokens of one sentence."""
        return self._tokenizer.decode(list(tokens)).strip()
