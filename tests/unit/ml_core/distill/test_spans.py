"""Alignment of tokens between tokenizers by the characters that they cover."""

from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.spans import span_alignment, text_spans

TEXT = "unhappy banking customers"


def real(spans):
    return torch.ones(spans.shape[:2], dtype=torch.bool)


def spans(*pairs):
    return torch.tensor([pairs])


def test_a_token_is_the_mean_of_those_that_share_its_characters_by_their_number():
    student, teacher = spans((0, 4), (4, 6)), spans((0, 1), (1, 4), (4, 6))
    shares = span_alignment(student, teacher, student_mask=real(student), teacher_mask=real(teacher))
    assert torch.allclose(shares, torch.tensor([[[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]]))


def test_equal_tokenizers_give_the_identity_on_real_tokens():
    same = spans((0, 0), (0, 3), (4, 6), (0, 0), (0, 0))
    mask = torch.tensor([[True, True, True, True, False]])
    shares = span_alignment(same, same, student_mask=mask, teacher_mask=mask)
    assert torch.equal(shares[0], torch.diag(mask[0].float()))


def test_special_tokens_meet_special_tokens_after_the_same_number_of_texts():
    # [CLS] a [SEP] b [SEP] against <s> a </s> </s> b </s>
    student = text_spans(spans((0, 0), (0, 3), (0, 0), (0, 2), (0, 0)), [[None, 0, None, 1, None]])
    teacher = text_spans(spans((0, 0), (0, 3), (0, 0), (0, 0), (0, 2), (0, 0)), [[None, 0, None, None, 1, None]])
    shares = span_alignment(student, teacher, student_mask=real(student), teacher_mask=real(teacher))[0]
    assert shares[0].tolist() == [1, 0, 0, 0, 0, 0]
    assert shares[2].tolist() == [0, 0, 0.5, 0.5, 0, 0]
    assert shares[3].tolist() == [0, 0, 0, 0, 1, 0]
    assert shares[4].tolist() == [0, 0, 0, 0, 0, 1]


def test_the_two_texts_of_a_pair_do_not_mix_though_their_characters_have_the_same_numbers():
    both = text_spans(spans((0, 3), (0, 3)), [[0, 1]])
    shares = span_alignment(both, both, student_mask=real(both), teacher_mask=real(both))
    assert torch.equal(shares[0], torch.eye(2))


def test_a_token_without_a_counterpart_has_a_row_of_zeros():
    student, teacher = spans((0, 0), (0, 3), (5, 7)), spans((0, 3))
    shares = span_alignment(student, teacher, student_mask=real(student), teacher_mask=real(teacher))
    assert shares[0].sum(-1).tolist() == [0, 1, 0]


def tokenizer(words, *, special):
    made = Tokenizer(models.WordPiece({w: i for i, w in enumerate(["[UNK]", "<a>", "<z>", *words])}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        made.post_processor = processors.TemplateProcessing(
            single="<a> $A <z>", special_tokens=[("<a>", 1), ("<z>", 2)]
        )
    return made


def test_two_real_tokenizers_of_one_text_align_word_by_word():
    coarse = tokenizer(["unhappy", "banking", "customers"], special=True).encode(TEXT)
    fine = tokenizer(["un", "##happy", "bank", "##ing", "custom", "##ers"], special=False).encode(TEXT)
    a, b = (torch.tensor([encoding.offsets]) for encoding in (coarse, fine))
    shares = span_alignment(
        text_spans(a, [coarse.sequence_ids]),
        text_spans(b, [fine.sequence_ids]),
        student_mask=real(a),
        teacher_mask=real(b),
    )[0]
    assert [row.nonzero().flatten().tolist() for row in shares] == [[], [0, 1], [2, 3], [4, 5], []]
    assert shares[1].tolist()[:2] == pytest.approx([2 / 7, 5 / 7])


def test_dfad_pools_the_teacher_by_the_alignment_and_leaves_lonely_tokens_out(features):
    student = features(b=2, n=3, widths=(8,))
    alignment = torch.tensor([[[0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]] * 2)
    fine = features(b=2, n=4, widths=(8,), seed=1)
    config = DFADConfig(kl_share=0.0, alpha=1.0, levels=("token", "layer", "heads"), relation_heads=2)
    student, fine = (
        replace(x, heads=features(b=2, n=n, heads=(8,), seed=s).heads) for x, n, s in ((student, 3, 5), (fine, 4, 6))
    )
    dfad = DFAD(config, (8,), (8,)).double().eval()
    task = torch.zeros((), dtype=torch.float64)
    pooled = alignment.double() @ fine.layers[0]
    mask = torch.tensor([[True, True, False]] * 2)
    expected = dfad(
        replace(student, mask=mask),
        replace(fine, layers=(pooled,), heads=tuple(t.pooled_by(alignment) for t in fine.heads)),
        task,
        0.0,
    )
    given = dfad(student, fine, task, 0.0, alignment=alignment)
    assert float(given.total.detach()) == pytest.approx(float(expected.total.detach()))
