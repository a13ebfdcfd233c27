"""What the report student's teachers show it, and how it is fitted by several of them at once."""

import copy
import time

import numpy as np
import pytest
import torch

from ml_core.data.report_tokens import FIRST_TEXT, PAD, STOP
from ml_core.distill.dfad import DFADConfig
from ml_core.models.cnn_teacher import CnnTeacher, presence_logit
from ml_core.models.report_student import ReportStudent, ReportStudentConfig
from ml_core.train.report_batches import FilmBatches
from ml_core.train.report_films import LABELLED, OTHER, SIMULATED, FilmSet
from ml_core.train.report_fit import Pupil, students_fit
from ml_core.train.report_loop import Course, FitOptions
from ml_core.train.report_losses import words_kl
from ml_core.train.report_teachers import CnnLessons, DrafterLessons

SIZE, TOKENS, WORDS = 32, 24, FIRST_TEXT + 20


def small(seed: int, *, depth: int = 2) -> ReportStudent:
    torch.manual_seed(seed)
    config = ReportStudentConfig(
        vocabulary=WORDS, image_size=SIZE, encoder_depth=depth, decoder_layers=1, decoder_width=32, decoder_heads=2,
        decoder_ffn=64, max_tokens=TOKENS,
    )  # fmt: skip
    return ReportStudent(config)


def films(count: int = 12) -> FilmSet:
    rng = np.random.default_rng(0)
    kind = np.asarray([SIMULATED, LABELLED, OTHER] * (count // 3), dtype=np.int8)
    texts = np.full((count, 2, TOKENS), PAD, dtype=np.int16)
    texts[kind != OTHER, :, :8] = [2, FIRST_TEXT, FIRST_TEXT + 1, STOP, 5, FIRST_TEXT + 2, FIRST_TEXT + 3, STOP]
    return FilmSet(
        images=rng.integers(0, 256, (count, SIZE, SIZE), dtype=np.uint8),
        kind=kind,
        states=rng.integers(0, 4, (count, 2, 14), dtype=np.int8),
        known=np.ones((count, 14), dtype=bool),
        boxes=np.zeros((count, 14, 4), dtype=np.float32),
        texts=texts,
    )


@pytest.fixture(scope="module")
def batch():
    shares = {SIMULATED: 0.5, LABELLED: 0.25, OTHER: 0.25}
    return FilmBatches(films(), shares, device="cpu", seed=0).draw(8)


def quiet(*_: object) -> None:
    pass


def test_the_mean_of_both_teachers_has_the_mean_logit_of_presence_and_keeps_the_proportions(batch) -> None:
    model, cnn = small(0).eval(), CnnTeacher().eval()
    with torch.no_grad():
        states = DrafterLessons(model, cnn=cnn).lesson(batch, side=2).features.logits
        own = model.forward_seen(batch.images).states
        wanted = (presence_logit(own) + cnn(batch.images)) / 2
    assert torch.allclose(presence_logit(states), wanted, atol=1e-5)
    assert torch.allclose(states[..., 0] - states[..., 2], own[..., 0] - own[..., 2], atol=1e-5)
    assert torch.equal(states[..., [1, 3]], own[..., [1, 3]])


def test_a_drafter_teaches_words_for_told_films_only_and_a_cnn_none(batch) -> None:
    with torch.no_grad():
        drafter = DrafterLessons(small(0).eval()).lesson(batch, side=2)
        cnn = CnnLessons(CnnTeacher().eval()).lesson(batch, side=2)
    told = int((batch.kind != OTHER).sum())
    assert drafter.words is not None
    assert drafter.words.shape == (told, TOKENS, WORDS)
    assert drafter.features.logits.shape == (len(batch.kind), 14, 4)
    assert cnn.words is None
    assert cnn.features.logits.shape == (len(batch.kind), 14, 1)
    assert [layer.shape[1] for layer in cnn.features.layers] == [4] * 5


def test_words_are_compared_where_the_model_writes_and_nowhere_else() -> None:
    text = torch.tensor([[2, FIRST_TEXT, STOP, 5, FIRST_TEXT, PAD]])
    own, other = torch.zeros(1, 6, WORDS), torch.zeros(1, 6, WORDS)
    assert float(words_kl(own, text, teacher=other)) == 0.0
    other[0, 2, 7] = 9.0  # guesses token 3, a control: given, never guessed
    other[0, 4:, 7] = 9.0  # guesses padding
    assert float(words_kl(own, text, teacher=other)) == 0.0
    other[0, 1] = torch.tensor([0.9, 0.1] + [0.0] * (WORDS - 2)).clamp_min(1e-12).log()
    by_hand = 0.9 * np.log(0.9 * WORDS) + 0.1 * np.log(0.1 * WORDS)
    assert float(words_kl(own, text, teacher=other)) == pytest.approx(by_hand / 3, rel=1e-4)  # three places count


def test_pupils_of_one_class_get_the_same_batches_and_what_each_learns_depends_on_its_own_teacher_alone() -> None:
    options = FitOptions(steps=2, batch=8, rate=1e-3)
    teacher = DrafterLessons(small(1, depth=3).eval())

    def fit(*pupils: Pupil) -> list[dict[str, torch.Tensor]]:
        torch.manual_seed(5)
        return [model.state_dict() for model in students_fit(pupils, films(), options, quiet)]

    def pupil(name: str, taught: DrafterLessons | None) -> Pupil:
        model = small(0)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # one stream of random numbers feeds all pupils' dropout
        return Pupil(name=name, model=model, teacher=taught, config=DFADConfig())

    (alone,) = fit(pupil("plain", None))
    together = fit(pupil("plain", None), pupil("plain again", None), pupil("taught", teacher))
    for name, value in alone.items():
        assert torch.equal(value, together[0][name])
        assert torch.equal(value, together[1][name])
    moved = [name for name, value in alone.items() if not torch.equal(value, together[2][name])]
    assert moved


def test_a_teacher_is_not_changed_by_teaching() -> None:
    teacher = DrafterLessons(small(1).eval())
    before = copy.deepcopy(teacher.state_dict())
    options = FitOptions(steps=2, batch=8, rate=1e-2)
    students_fit([Pupil(name="s", model=small(0), teacher=teacher)], films(), options, quiet)
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in before.items())


def test_a_course_ends_by_its_steps_or_by_the_clock_whichever_comes_first() -> None:
    course = Course(FitOptions(steps=4, batch=1, rate=0.1))
    assert course.progress == 0.0
    course.at = 3
    assert course.progress == 0.75
    course.at = 9
    assert course.progress == 1.0
    hurried = Course(FitOptions(steps=10**9, batch=1, rate=0.1, seconds=0.05))
    assert hurried.progress < 1
    time.sleep(0.06)
    assert hurried.progress == 1.0


def test_the_checks_come_at_the_quarters_and_see_every_pupil() -> None:
    seen: list[tuple[str, int]] = []
    options = FitOptions(steps=8, batch=8, rate=1e-3)
    pupils = [Pupil(name=name, model=small(0), teacher=None) for name in ("a", "b")]
    students_fit(pupils, films(), options, quiet, check=lambda name, model, step: seen.append((name, step)))
    assert seen == [(name, step) for step in (2, 4, 6, 8) for name in ("a", "b")]
