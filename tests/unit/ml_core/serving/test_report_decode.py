"""The step on the device writes what ReportStudent.decode_plan writes: the same tokens, probabilities to 1e-5."""

import copy
import functools
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ml_core.contracts import DraftRequest, ImageInput, ModelKey, ModelKind, StudyInput
from ml_core.data.findings import FINDINGS
from ml_core.data.phantom_dicom import make_studies
from ml_core.data.report_tokens import STATE_INDEX, STOP, ReportTokenizer
from ml_core.errors import InputError
from ml_core.evals.report import SHIPPED
from ml_core.layers.fuse import fuse
from ml_core.models.report_rules import plan_make
from ml_core.models.report_student import STATES, ReportStudent, ReportStudentConfig
from ml_core.quant import QuantEmbedding, QuantLinear
from ml_core.quant.swap import replace
from ml_core.serving.report import TOKENIZER, ReportDrafter
from ml_core.serving.report_decode import PlanDecoder

ROOT = Path(__file__).resolve().parents[4]
CUDA = torch.cuda.is_available()
VOCABULARY, STOPPING = 23, 1
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="needs CUDA")])]


@pytest.fixture(scope="module")
def student():
    """At random, and talkative: it stops after a few tokens on the average, and its bias by distance matters."""
    torch.manual_seed(2)
    config = ReportStudentConfig(
        vocabulary=VOCABULARY,
        image_size=64,
        encoder_depth=1,
        decoder_layers=2,
        decoder_width=32,
        decoder_heads=2,
        decoder_ffn=48,
        max_tokens=50,
    )
    made = ReportStudent(config).eval()
    for parameter in made.decoder.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.4)
    nn.init.normal_(made.output.weight, std=0.5)
    with torch.no_grad():
        made.output.bias[STOPPING] = 2.0
    return made


def memory(student, rows, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    m = 1 + student.encoder.patch_embed.num_patches + len(FINDINGS)
    return torch.randn(rows, m, student.config.decoder_width, generator=generator)


def plans(*lengths, seed=0):
    numbers = random.Random(seed)
    return [[numbers.randrange(2, VOCABULARY) for _ in range(length)] for length in lengths]


def same(got, wanted, *, within=1e-5):
    """Whether two batches hold the same sentences; the number of sentences."""
    assert len(got) == len(wanted)
    for mine, theirs in zip(got, wanted, strict=True):
        assert [(s.control, s.tokens) for s in mine.sentences] == [(s.control, s.tokens) for s in theirs.sentences]
        for one, other in zip(mine.sentences, theirs.sentences, strict=True):
            assert one.log_probability == pytest.approx(other.log_probability, abs=within)
    return sum(len(row.sentences) for row in wanted)


BATCHES = {
    "one row": [3],
    "an empty plan": [0],
    "an empty plan beside others": [0, 4, 1],
    "all empty": [0, 0],
    "a full bucket": [1, 2, 3, 4],
    "more than a bucket": [2, 5, 1, 3, 4],
    "sixteen": [i % 6 for i in range(16)],
    "plans that no report can hold": [49, 50, 51, 90],
}


@pytest.fixture(scope="module")
def by_decode_plan(student):
    """What decode_plan writes for one of the batches, and how far another way's probabilities may be from it.

    That is four times its own distance from double precision: machines differ in how they round.
    """

    @functools.cache
    def write(name, *, seed, limit, device):
        lengths = BATCHES[name]
        read, asked = memory(student, len(lengths), seed=seed).to(device), plans(*lengths, seed=seed)
        wanted = student.to(device).decode_plan(read, asked, stop=STOPPING, limit=limit)
        exact = copy.deepcopy(student).double().decode_plan(read.double(), asked, stop=STOPPING, limit=limit)
        pairs = [
            (one.log_probability, other.log_probability)
            for mine, theirs in zip(wanted, exact, strict=True)
            for one, other in zip(mine.sentences, theirs.sentences, strict=True)
        ]
        return wanted, max([1e-5, *(4 * abs(one - other) for one, other in pairs)])

    return write


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("every", [1, 8, 1000])
@pytest.mark.parametrize("name", list(BATCHES))
def test_it_writes_what_decode_plan_writes(student, by_decode_plan, device, every, name):
    decoder, lengths = PlanDecoder(student.to(device), device=device, every=every), BATCHES[name]
    for seed in range(3):
        asked, read = plans(*lengths, seed=seed), memory(student, len(lengths), seed=seed).to(device)
        for limit in (40, 3, 0):
            wanted, within = by_decode_plan(name, seed=seed, limit=limit, device=device)
            assert within < 1e-3
            sentences = same(decoder.decode(read, asked, stop=STOPPING, limit=limit), wanted, within=within)
            assert sentences > 0 or not any(lengths)
    student.to("cpu")


def test_the_batches_hold_sentences_ended_by_the_stop_by_the_limit_and_by_the_end_of_the_report(student):
    read = memory(student, 16)
    free = student.decode_plan(read, plans(*range(16)), stop=STOPPING)
    sizes = {len(sentence.tokens) for row in free for sentence in row.sentences}
    assert len(sizes) > 3
    assert any(len(row.sentences) < i for i, row in enumerate(free))  # the report was full before the plan was through
    cut = student.decode_plan(read, plans(*range(16)), stop=STOPPING, limit=3)
    assert 3 in {len(sentence.tokens) for row in cut for sentence in row.sentences}
    assert any(row.sentences and len(row.sentences) == i for i, row in enumerate(cut))


def test_a_row_does_not_depend_on_its_neighbours_nor_on_the_batch_before(student):
    decoder = PlanDecoder(student, device="cpu")
    read, asked = memory(student, 5), plans(4, 2, 0, 5, 3)
    together = decoder.decode(read, asked, stop=STOPPING)
    for i in range(5):
        same(decoder.decode(read[i : i + 1], asked[i : i + 1], stop=STOPPING), together[i : i + 1])
    decoder.decode(memory(student, 8, seed=9), plans(*range(8), seed=9), stop=3)
    same(decoder.decode(read, asked, stop=STOPPING), together)


def test_steps_end_soon_after_the_last_row_is_through(student):
    decoder = PlanDecoder(student, device="cpu", every=4)
    (written,) = decoder.decode(memory(student, 1), plans(1), stop=STOPPING, limit=2)
    state, _ = decoder._states[1]
    assert len(written.sentences[0].tokens) <= 2
    assert int(state.at) == 4


def test_a_draft_can_be_asked_for_in_and_out_of_inference_mode(student):
    decoder, read, asked = PlanDecoder(student, device="cpu"), memory(student, 1), plans(2)
    with torch.inference_mode():
        first = decoder.decode(read.clone(), asked, stop=STOPPING)
    same(decoder.decode(read, asked, stop=STOPPING), first)


@pytest.mark.slow
@pytest.mark.skipif(not CUDA and shutil.which("g++") is None, reason="inductor needs a C++ compiler on the CPU")
def test_a_compiled_step_writes_the_same(student, tmp_path):
    # apart: here jaxtyping's checks stand in the layers' functions, and dynamo cannot trace them
    save_file(student.state_dict(), tmp_path / "student.safetensors")
    given = [(memory(student, 3, seed=seed).tolist(), plans(4, 0, 2, seed=seed)) for seed in range(2)]
    (tmp_path / "given.json").write_text(json.dumps(given))
    code = f"""if True:
        import json
        import torch
        from pathlib import Path
        from safetensors.torch import load_file
        from ml_core.models.report_student import ReportStudent, ReportStudentConfig
        from ml_core.serving.report_decode import PlanDecoder
        folder, device = Path({str(tmp_path)!r}), "cuda" if torch.cuda.is_available() else "cpu"
        student = ReportStudent({student.config!r}).eval()
        student.load_state_dict(load_file(folder / "student.safetensors"))
        student.to(device)
        decoder = PlanDecoder(student, device=device, compiled=True)
        assert "compiled steps" in decoder.report()
        sentences = 0
        for read, plans in json.loads((folder / "given.json").read_text()):
            read = torch.tensor(read, device=device)
            got, wanted = (write(read, plans, stop={STOPPING}) for write in (decoder.decode, student.decode_plan))
            for mine, theirs in zip(got, wanted, strict=True):
                assert [s.tokens for s in mine.sentences] == [s.tokens for s in theirs.sentences]
                for one, other in zip(mine.sentences, theirs.sentences, strict=True):
                    assert abs(one.log_probability - other.log_probability) < 1e-5
                    sentences += 1
        assert sentences > 2, sentences
    """
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_no_rows_no_reports(student):
    assert PlanDecoder(student, device="cpu").decode(memory(student, 0), [], stop=STOPPING) == []


def test_what_does_not_fit_is_named(student):
    decoder = PlanDecoder(student, device="cpu")
    assert "eager steps, no CUDA graphs on cpu" in decoder.report()
    for read, asked, name in (
        (memory(student, 2), plans(1), "memory: expected"),
        (memory(student, 1)[:, 1:], plans(1), "memory: expected"),
        (memory(student, 1).double(), plans(1), "memory: expected float32"),
        (memory(student, 17), plans(*[1] * 17), "plans: 17 rows"),
    ):
        with pytest.raises(InputError, match=name):
            decoder.decode(read, asked, stop=STOPPING)
    with pytest.raises(InputError, match="eval mode"):
        PlanDecoder(ReportStudent(student.config).train(), device="cpu")
    other = copy.deepcopy(student)
    other.decoder[1] = nn.Identity()
    with pytest.raises(InputError, match="holds a Identity"):
        PlanDecoder(other, device="cpu")


def test_a_student_on_super_operators_is_written_by_the_same_step(student):
    fused, report = fuse(copy.deepcopy(student))
    assert {"decoder.0", "decoder.1"} <= {each.name for each in report.fused}
    read, asked = memory(student, 3), plans(4, 0, 2)
    wanted = fused.decode_plan(read, asked, stop=STOPPING, limit=5)
    assert same(PlanDecoder(fused, device="cpu").decode(read, asked, stop=STOPPING, limit=5), wanted) == 6


@pytest.fixture(scope="module")
def shipped():
    return ReportDrafter(SHIPPED, device="cpu")


@pytest.mark.parametrize(("int8", "within"), [(False, 1e-5), (True, 1e-2)])
def test_the_shipped_student_writes_the_same_reports(shipped, int8, within):
    """Its plans are those of decided findings. With its weights as floats: to 1e-5. As it ships its inputs are rounded
    to levels too, where the last bit of attention can tip one: the same words, probabilities to 1e-2."""
    student = shipped.student if int8 else replace(copy.deepcopy(shipped.student), chosen=_widened)
    tokenizer = ReportTokenizer((SHIPPED / TOKENIZER).read_text())
    torch.manual_seed(0)
    with torch.inference_mode():
        seen = student.forward_seen(torch.rand(4, 1, 256, 256))
        decided = torch.randint(0, STATES, (4, len(FINDINGS)))
        decided[0] = 3
        read = student.memory(seen, decided)
    asked = [[tokenizer.control(each) for each in plan_make(_states(row))] for row in decided.tolist()]
    wanted = student.decode_plan(read, asked, stop=STOP)
    got = PlanDecoder(student, device="cpu").decode(read, asked, stop=STOP)
    assert same(got, wanted, within=within) > 10


def _widened(module):
    if isinstance(module, QuantLinear):
        wide = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        wide.weight = nn.Parameter(module.dequantized())
        wide.bias = None if module.bias is None else nn.Parameter(module.bias)
        return wide
    if isinstance(module, QuantEmbedding):
        return nn.Embedding.from_pretrained(module.weight.float() * module.weight_scale[:, None])
    return None


def draft(drafter, studies):
    key = ModelKey(kind=ModelKind.REPORT, digest=drafter.digest, folder=str(SHIPPED))
    asked = tuple(
        StudyInput(key=study.study_uid, images=(ImageInput(key="0", encoded=study.files[0][1]),)) for study in studies
    )
    return drafter.draft(DraftRequest(model=key, studies=asked)).drafts


def test_a_drafter_drafts_the_same_through_either(shipped, monkeypatch):
    """On CUDA a drafter takes the step on the device, on the CPU decode_plan; here both on one CPU.

    As int8 it rounds its inputs to levels, so that a wording which is a near tie may fall either way.
    """
    studies = make_studies(731, patients=6, priors=0.0)
    assert shipped.decoder is None
    wanted = draft(shipped, studies)
    monkeypatch.setattr(shipped, "decoder", PlanDecoder(shipped.student, device="cpu"))
    got = draft(shipped, studies)
    assert sum(len(each.sentences) for each in wanted) > 6
    pairs = []
    for mine, theirs in zip(got, wanted, strict=True):
        assert [(s.section, s.finding) for s in mine.sentences] == [(s.section, s.finding) for s in theirs.sentences]
        pairs += zip(mine.sentences, theirs.sentences, strict=True)
    alike = [(one, other) for one, other in pairs if one.text == other.text]
    assert len(alike) >= 0.9 * len(pairs)
    for one, other in alike:
        assert one.confidence == pytest.approx(other.confidence, abs=1e-2)  # int8, as above
    assert shipped.decoder._states  # it was used


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs CUDA")
def test_on_a_gpu_the_drafter_writes_with_graphs_what_the_cpu_writes():
    studies = make_studies(731, patients=16, priors=0.0)
    here, there = ReportDrafter(SHIPPED, device="cpu"), ReportDrafter(SHIPPED, device="cuda")
    texts = [[[(s.section, s.text) for s in each.sentences] for each in draft(d, studies)] for d in (here, there)]
    assert texts[0] == texts[1]
    assert "CUDA graphs: 1 graphs" in there.decoder.report()


def test_a_student_trained_further_is_read_anew(student):
    changed = copy.deepcopy(student)
    decoder, read, asked = PlanDecoder(changed, device="cpu"), memory(student, 2), plans(3, 3)
    before = decoder.decode(read, asked, stop=STOPPING)
    with torch.no_grad():
        for block in changed.decoder:
            block.attn.dpe.table.mul_(-3)
    after = decoder.decode(read, asked, stop=STOPPING)
    assert after != before
    same(after, changed.decode_plan(read, asked, stop=STOPPING))


def _states(row):
    names = {index: state for state, index in STATE_INDEX.items()}
    return {name: names[index] for name, index in zip(FINDINGS, row, strict=True)}
