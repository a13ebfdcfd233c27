"""What teachers of the radiology student show it: features, logits of the findings and, where they write, of words.

Shapes: b films, n tokens of a layer, f = 14 findings, s = 4 states, t told films, w text tokens, v vocabulary.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from ml_core.distill.features import Features
from ml_core.models.cnn_teacher import THERE, CnnTeacher, presence_logit
from ml_core.models.report_student import ReportStudent, Seen
from ml_core.train.report_batches import FilmBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """Of one batch: `features` (logits b f s, or b f 1 from a teacher that knows presence only), `words` (t w v)."""

    features: Features
    words: Tensor | None


class CnnLessons(nn.Module):
    """A CNN teaches what is there and its maps, no words. `widths`, `pooled_width`: of its layers and its embedding."""

    def __init__(self, cnn: CnnTeacher) -> None:
        super().__init__()
        self.cnn = cnn
        self.widths, self.pooled_width = cnn.widths, cnn.net.num_features

    def lesson(self, batch: FilmBatch, *, side: int) -> Lesson:
        """What it shows of a batch, its maps on a grid of side x side."""
        layers, pooled, logits = self.cnn.features(batch.images, side=side)
        layers = tuple(layer.float() for layer in layers)
        return Lesson(
            features=Features(layers=layers, pooled=pooled.float(), logits=logits.float()[..., None]), words=None
        )

    def presence(self, images: Tensor) -> Tensor:
        """Logits of presence (b f) for images (b 1 h w) in [0, 1]."""
        return self.cnn(images)


class DrafterLessons(nn.Module):
    """A report model teaches its blocks' tokens, the four states and the words; a CNN may have its say on presence.

    With `cnn` the logit of presence is the mean of both, and the states of one side keep their proportions.
    """

    def __init__(self, model: ReportStudent, *, cnn: CnnTeacher | None = None) -> None:
        super().__init__()
        self.model, self.cnn = model, cnn
        width = model.encoder.embed_dim
        self.widths, self.pooled_width = (width,) * model.config.encoder_depth, width

    def lesson(self, batch: FilmBatch, *, side: int) -> Lesson:
        """What it shows of a batch; its own grid must have that side."""
        seen = self.model.forward_seen(batch.images)
        told = batch.told
        words = None
        if bool(told.any()):
            memory = self.model.memory(seen.rows(told), batch.states[told])
            words = self.model.forward_text(memory, batch.texts[told]).float()
        return Lesson(features=student_features(seen, states=self._states(seen, batch.images)), words=words)

    def presence(self, images: Tensor) -> Tensor:
        """Logits of presence (b f) for images (b 1 h w) in [0, 1]."""
        return presence_logit(self._states(self.model.forward_seen(images), images))

    def _states(self, seen: Seen, images: Tensor) -> Tensor:
        states = seen.states.float()
        if self.cnn is None:
            return states
        shift = (self.cnn(images).float() - presence_logit(states)) / 2
        moved = states.clone()
        moved[..., THERE] += shift[..., None]
        return moved


Teacher = CnnLessons | DrafterLessons


def student_features(seen: Seen, *, states: Tensor | None = None, presence_only: bool = False) -> Features:
    """A report model's features; the logits are those of its four states (or `states`), or of presence alone."""
    logits = seen.states.float() if states is None else states
    return Features(
        layers=tuple(layer[:, 1:].float() for layer in seen.layers),
        pooled=seen.tokens[:, 0].float(),
        logits=presence_logit(logits)[..., None] if presence_only else logits,
    )


def rows_of(features: Features, rows: Tensor) -> Features:
    """The features of some of the batch (a mask or indices)."""
    logits = None if features.logits is None else features.logits[rows]
    return Features(layers=tuple(layer[rows] for layer in features.layers), pooled=features.pooled[rows], logits=logits)


def presence_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of presence (b f) by a CNN, a report model or lessons of either."""
    if isinstance(model, ReportStudent):
        return presence_logit(model.forward_seen(images).states.float())
    if isinstance(model, CnnLessons | DrafterLessons):
        return model.presence(images)
    return model(images)
