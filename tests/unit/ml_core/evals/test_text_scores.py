"""Word overlap on examples small enough to be computed by hand."""

import math

import pytest
from testkit.text_scores import has_java, text_scores, tokens

_SAME = "w x y z"


def test_tokens_are_lower_case_words_and_points() -> None:
    assert tokens("Heart size, normal.No effusion (left).") == "heart size normal . no effusion left ."
    assert tokens("") == tokens(" ,;") == "."


def test_bleu_is_the_corpus_s_with_the_brevity_penalty() -> None:
    scores = text_scores(["a b c d e", _SAME], ["a b c d f", _SAME], meteor=False)
    assert scores["BLEU-4"].value == pytest.approx((8 / 9 * 6 / 7 * 4 / 5 * 2 / 3) ** 0.25, abs=1e-6)
    short = text_scores(["a b c d", _SAME], ["a b c d e", _SAME], meteor=False)
    assert short["BLEU-4"].value == pytest.approx(math.exp(1 - 9 / 8), abs=1e-6)


def test_bleu_s_interval_comes_from_the_same_formula() -> None:
    """Every resample of equal reports is the same corpus, whatever its size."""
    score = text_scores(["a b c d e"] * 5, ["a b c d f"] * 5, meteor=False)["BLEU-4"]
    assert score.low == pytest.approx(score.value, abs=1e-6)
    assert score.high == pytest.approx(0.2**0.25, abs=1e-6)


def test_rouge_l_weighs_recall_more_than_precision() -> None:
    scores = text_scores(["a b c d", _SAME], ["a x b c d", _SAME], meteor=False)
    one = 2.44 * 1.0 * 0.8 / (0.8 + 1.44 * 1.0)  # precision 4/4, recall 4/5, beta 1.2
    assert scores["ROUGE-L"].value == pytest.approx((one + 1) / 2)


def test_cider_is_ten_for_the_reference_itself_and_nothing_for_words_that_all_reports_share() -> None:
    texts = ["a b c d", "e f g h"]
    assert text_scores(texts, texts, meteor=False)["CIDEr"].value == pytest.approx(10)
    assert text_scores(["a b c d", "i j k l"], texts, meteor=False)["CIDEr"].value == pytest.approx(5)
    assert text_scores(["a b c d"] * 2, ["a b c d"] * 2, meteor=False)["CIDEr"].value == 0


@pytest.mark.slow
@pytest.mark.skipif(not has_java(), reason="METEOR 1.5 needs Java")
def test_meteor_is_one_for_the_reference_itself_and_nothing_without_a_common_word() -> None:
    texts = ["the heart is enlarged .", "there is a small left effusion ."]
    assert text_scores(texts, texts)["METEOR"].value == pytest.approx(1, abs=0.01)
    assert text_scores(["zzz qqq", "vvv kkk"], texts)["METEOR"].value == pytest.approx(0, abs=0.01)


def test_unequal_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="2 candidates, 1 references"):
        text_scores(["a", "b"], ["a"])


def test_meteor_without_java_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="Java"):
        text_scores(["a", "b"], ["a", "b"])
