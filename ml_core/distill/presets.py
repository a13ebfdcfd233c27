"""The systems that a benchmark compares, each as one DFADConfig for the same trainer: one function a baseline."""

from collections.abc import Callable

from ml_core.distill.spec import DFADConfig


def ce_only() -> DFADConfig:
    """The task's loss alone: what the student reaches without any teacher. DFAD then takes None for the teacher."""
    return DFADConfig(levels=(), alpha=0.0, kl_share=0.0)


def plain_kd(*, temperature: float = 2.0, share: float = 0.5) -> DFADConfig:
    """Plain distillation: (1 − share)·task + share·T²·KL of the logits (Hinton et al. 2015). Tune both."""
    return DFADConfig(levels=(), alpha=0.0, temperature=temperature, kl_share=share)


def fitnets(*, alpha: float = 0.7) -> DFADConfig:
    """Uniform-weight feature KD: every student layer's tokens regress on its teacher layer through a projector, with

    KD of the logits beside (after Romero et al. 2015, who match one layer, first; here in one stage and all layers).
    """
    return DFADConfig(weighting="uniform", levels=("token",), relation=0.0, alpha=alpha, token_share=1.0)


def minilm(*, alpha: float = 0.7, relation_heads: int = 12) -> DFADConfig:
    """Self-attention relations alone, QQ, KK and VV (MiniLMv2, Wang et al. 2021), beside the task's loss."""
    return DFADConfig(weighting="uniform", levels=("heads",), alpha=alpha, kl_share=0.0, relation_heads=relation_heads)


def as_published() -> DFADConfig:
    """DFAD literally as its source prints it: token, layer and global levels, cos·sigmoid weights, no logits."""
    return DFADConfig(weighting="as_published", kl_share=0.0)


def default(*, heads: bool = False, relation_heads: int = 12) -> DFADConfig:
    """DFAD with every mend; `heads` adds the MiniLMv2 relations where both models show queries, keys and values."""
    if not heads:
        return DFADConfig()
    return DFADConfig(levels=("token", "layer", "global", "heads"), relation_heads=relation_heads)


PRESETS: dict[str, Callable[[], DFADConfig]] = {
    "ce_only": ce_only,
    "plain_kd": plain_kd,
    "fitnets": fitnets,
    "minilm": minilm,
    "as_published": as_published,
    "default": default,
}
