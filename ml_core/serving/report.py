"""Drafting reports: studies in, one draft a study out, up to 16 images in one call of the model."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ml_core import artifacts
from ml_core.config import from_mapping
from ml_core.contracts import Draft, DraftRequest, DraftResult, Finding, FindingState, ModelKind, Sentence, StudyInput
from ml_core.data.chest import box_on_image, film_prepare
from ml_core.data.dicom import Grey, image_read, is_simulated
from ml_core.data.findings import FINDINGS, INDEX, NO_FINDING
from ml_core.data.labeller import label_sentence, sentences_split
from ml_core.data.report_tokens import STATE_INDEX, STOP, ReportTokenizer
from ml_core.errors import ArtifactError, ImageError
from ml_core.models.cnn_teacher import presence_logit
from ml_core.models.report_rules import Rules, plan_make, states_decide
from ml_core.models.report_student import ReportStudent, ReportStudentConfig, Seen, Written
from ml_core.quant import load_quantized
from ml_core.serving.engines.programs import report_program, seen_of
from ml_core.serving.engines.served import Served, served
from ml_core.serving.report_decode import PlanDecoder

TOKENIZER = "tokenizer.json"
_BOX_FROM = 0.05
BATCH = 16  # images, and drafts, of one call of the model
T = TypeVar("T")
_TOLD = (FindingState.POSITIVE, FindingState.UNCERTAIN)
_NOT_CHEST = "This does not look like a frontal chest radiograph, so no draft was written."
_BLANK = "The image is blank: it shows one grey value only, so no draft was written."


class ReportDrafter:
    """A loaded report student. Safe to share: on the CPU it keeps nothing between calls, on CUDA callers take turns.

    `decoder` is what writes on CUDA (graphs, serving.report_decode); None on the CPU, where decode_plan writes.
    """

    def __init__(self, folder: Path | str, *, device: str | None = None, tables: Path | None = None) -> None:
        """`device`: where it runs, the GPU where there is one by default. `tables`: where `python -m ml_core measure`
        stored what this machine's engines take for an image; torch without one.

        Raises ArtifactError when the folder is no artifact of this kind or is damaged.
        """
        root = Path(folder)
        manifest = artifacts.read(root)
        if manifest.kind is not ModelKind.REPORT:
            raise ArtifactError(f"{root} holds a {manifest.kind} model, not a report model")
        self.digest = manifest.digest
        self.config = from_mapping(ReportStudentConfig, manifest.config["student"], where="config.student")
        self.rules = from_mapping(Rules, manifest.config["rules"], where="config.rules")
        self.tokenizer = ReportTokenizer((root / TOKENIZER).read_text())
        student = ReportStudent(self.config)
        tensors = {name: _widened(tensor) for name, tensor in artifacts.load_tensors(root).items()}
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.student = load_quantized(student, tensors).eval().to(self.device)
        self.decoder = _decoder(self.student, self.device)
        self.served: Served | None = None
        if self.device.type == "cpu":
            self.served = served(report_program(self.student), digest=self.digest, folder=tables, threads=1)

    @classmethod
    def of(
        cls, student: ReportStudent, *, tokenizer: ReportTokenizer, rules: Rules, device: str = "cpu"
    ) -> "ReportDrafter":
        """A drafter of a model in memory, a teacher's for example; it has no digest. Moves the model to `device`."""
        drafter = cls.__new__(cls)
        drafter.digest, drafter.config, drafter.rules, drafter.tokenizer = "", student.config, rules, tokenizer
        drafter.device = torch.device(device)
        drafter.student = student.eval().to(drafter.device)
        drafter.decoder = _decoder(drafter.student, drafter.device)
        drafter.served = None
        return drafter

    def draft(self, request: DraftRequest) -> DraftResult:
        """Draft one report a study; a study that cannot be drafted is declined with its reason, the others go on."""
        # full precision on every device, so that the GPU writes what the CPU writes
        with _one_thread(), torch.backends.cudnn.flags(allow_tf32=False):
            return self._draft_all(request)

    def _draft_all(self, request: DraftRequest) -> DraftResult:
        started = time.monotonic()
        pictures = [_read(study, number, size=self.config.image_size) for number, study in enumerate(request.studies)]
        flat = [picture for study in pictures for picture in study if picture.film is not None]
        for chunk in _chunks(flat, BATCH):
            self._look(chunk)
        drafts: list[Draft | None] = [self._decline(study, pictures[i]) for i, study in enumerate(request.studies)]
        todo = [index for index, draft in enumerate(drafts) if draft is None]
        for indices in _chunks(todo, BATCH):
            views = [_View.of([p for p in pictures[i] if p.gate >= self.rules.gate], self.rules) for i in indices]
            for index, view, written in zip(indices, views, self._write(views), strict=True):
                drafts[index] = self._draft(request.studies[index].key, view, written)
        return DraftResult(
            model_digest=self.digest,
            drafts=tuple(draft for draft in drafts if draft),
            seconds=time.monotonic() - started,
        )

    @torch.inference_mode()
    def _look(self, pictures: Sequence["_Picture"]) -> None:
        """One pass of the encoder over up to 16 images; each picture gets what was seen on it."""
        images = torch.from_numpy(np.stack([picture.film for picture in pictures if picture.film is not None]))
        if self.served is None:
            seen = self.student.forward_seen(images[:, None].to(self.device))
        else:
            seen = _stack([seen_of(self.served({"b": 1}, each[None, None])) for each in images])
        gates, presence, states, attention = (
            tensor.cpu()
            for tensor in (
                seen.gate.sigmoid(), presence_logit(seen.states).sigmoid(), seen.states.softmax(-1), seen.attention,
            )
        )  # fmt: skip
        for row, picture in enumerate(pictures):
            blank = float(picture.film.max()) == 0.0 if picture.film is not None else True
            picture.gate = 0.0 if blank else float(gates[row])
            picture.reason = _BLANK if blank else "" if picture.gate >= self.rules.gate else _NOT_CHEST
            picture.presence, picture.states = presence[row].numpy(), states[row].numpy()
            picture.attention = attention[row].numpy()
            picture.seen = seen.rows(slice(row, row + 1))

    def _decline(self, study: StudyInput, pictures: Sequence["_Picture"]) -> Draft | None:
        if any(picture.gate >= self.rules.gate for picture in pictures):
            return None
        reasons = list(dict.fromkeys(picture.reason for picture in pictures)) or ["The study has no images."]
        return Draft(study_key=study.key, declined=True, declined_reason=" ".join(reasons))

    @torch.inference_mode()
    def _write(self, views: Sequence["_View"]) -> list[Written]:
        seen = _stack([view.lead.seen for view in views if view.lead.seen is not None])
        indices = [[STATE_INDEX[view.decided[name]] for name in FINDINGS] for view in views]
        decided = torch.tensor(indices, device=self.device)
        memory = self.student.memory(seen, decided)
        plans = [[self.tokenizer.control(control) for control in plan_make(view.decided)] for view in views]
        if self.decoder is None:
            return self.student.decode_plan(memory, plans, stop=STOP)
        return self.decoder.decode(memory, plans, stop=STOP)

    def _draft(self, key: str, view: "_View", written: Written) -> Draft:
        sentences = []
        for item in written.sentences:
            control = self.tokenizer.control_of(item.control)
            text = self.tokenizer.decode(item.tokens)
            if not says(text, finding=control.finding, state=control.state):
                continue  # what was written is not what was decided: the finding stays in the list, the sentence goes
            there = float(view.presence[INDEX[control.finding]])
            sure = there if control.state in _TOLD else 1 - there
            told = control.state in _TOLD and control.finding != NO_FINDING
            picture = view.best(control.finding)
            sentences.append(
                Sentence(
                    section=control.section,
                    text=text,
                    finding=control.finding,
                    image_key=picture.key if told else "",
                    confidence=min(1.0, max(0.0, sure * math.exp(item.log_probability))),
                    box=picture.box(control.finding) if told else None,
                )
            )
        findings = tuple(
            Finding(name=name, state=view.decided[name], probability=float(view.presence[INDEX[name]]))
            for name in FINDINGS
        )
        return Draft(study_key=key, declined=False, findings=findings, sentences=tuple(sentences))


def _decoder(student: ReportStudent, device: torch.device) -> PlanDecoder | None:
    return PlanDecoder(student, device=device) if device.type == "cuda" else None


@contextmanager
def _one_thread() -> Iterator[None]:
    """Decoding is thousands of small operators: on a busy machine the barriers of a second thread cost tenfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def says(text: str, *, finding: str, state: FindingState) -> bool:
    """Whether our labeller reads `state` of `finding` in the text ("No Finding": nothing asserted or suspected)."""
    said: dict[str, FindingState] = {}
    for sentence in sentences_split(text):
        said |= label_sentence(sentence)
    if finding == NO_FINDING:
        return not any(value in _TOLD for value in said.values())
    return said.get(finding) is state


@dataclass
class _Picture:
    """One image on its way: read, looked at, or the reason why not."""

    key: str
    study: int
    height: int = 0
    width: int = 0
    film: Grey | None = None
    simulated: bool = False
    gate: float = -1.0
    reason: str = ""
    presence: NDArray[np.float32] | None = None
    states: NDArray[np.float32] | None = None
    attention: NDArray[np.float32] | None = None
    seen: Seen | None = None

    def box(self, finding: str) -> tuple[float, float, float, float] | None:
        """Where the finding's attention lies, on the image as it came."""
        assert self.attention is not None
        square = attention_box(self.attention[INDEX[finding]])
        return box_on_image(square, height=self.height, width=self.width)


@dataclass(frozen=True, kw_only=True)
class _View:
    """What a study's accepted images say together: probabilities are means; the surest chest film leads."""

    pictures: list[_Picture]
    lead: _Picture
    presence: NDArray[np.float32]
    decided: dict[str, FindingState]

    @classmethod
    def of(cls, pictures: list[_Picture], rules: Rules) -> "_View":
        """Combine the accepted images of one study; only where all are simulated it is judged as simulated."""
        rules = rules.for_films(simulated=all(picture.simulated for picture in pictures))
        presence = np.mean([picture.presence for picture in pictures], axis=0)
        states = np.mean([picture.states for picture in pictures], axis=0)
        lead = max(pictures, key=lambda picture: picture.gate)
        return cls(pictures=pictures, lead=lead, presence=presence, decided=states_decide(presence, states, rules))

    def best(self, finding: str) -> _Picture:
        """The image on which the finding is most probable."""
        return max(self.pictures, key=lambda picture: float(picture.presence[INDEX[finding]]))


def attention_box(attention: NDArray[np.float32]) -> tuple[float, float, float, float]:
    """(x, y, width, height) on the square: around all cells that get at least a twentieth of the strongest one's share.

    Attention is peaked; the share was chosen on simulated films of known truth (docs/log.md).
    """
    mask = attention >= _BOX_FROM * attention.max()
    side = attention.shape[0]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = columns[0] / side, rows[0] / side
    return (float(x), float(y), float((columns[-1] + 1) / side - x), float((rows[-1] + 1) / side - y))


def _read(study: StudyInput, number: int, *, size: int) -> list[_Picture]:
    pictures = []
    for image in study.images:
        try:
            grey = image_read(image.encoded)
        except ImageError as error:
            pictures.append(_Picture(key=image.key, study=number, reason=f"The image cannot be read: {error}."))
            continue
        film, made = film_prepare(grey, size=size), is_simulated(image.encoded)
        height, width = grey.shape
        pictures.append(_Picture(key=image.key, study=number, height=height, width=width, film=film, simulated=made))
    return pictures


def _stack(seen: list[Seen]) -> Seen:
    return Seen(
        tokens=torch.cat([one.tokens for one in seen]),
        layers=(),
        gate=torch.cat([one.gate for one in seen]),
        states=torch.cat([one.states for one in seen]),
        attention=torch.cat([one.attention for one in seen]),
        memory=torch.cat([one.memory for one in seen]),
        contexts=torch.cat([one.contexts for one in seen]),
    )


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    """Half-precision tensors are stored small and computed in float32."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
