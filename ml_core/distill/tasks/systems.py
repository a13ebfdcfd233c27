"""The systems that are compared, by name: six ways of being taught, and DFAD with each mend left out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ml_core.distill import presets
from ml_core.distill.dfad import DFAD, DFADConfig, Quantize
from ml_core.distill.features import Features
from ml_core.distill.tasks.request import Tuned
from ml_core.distill.tasks.task import Case
from ml_core.distill.tasks.unmended import Unmended, Without
from ml_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """DFAD's default with `changes` of its settings, or with a mend taken back (`without`).

    quantizer: whether features pass through the student's quantizer, where it has one.
    """

    says: str
    changes: dict[str, Any] | None = None
    without: Without = ""
    quantizer: bool = True


SIX = ("ce", "kd", "fitnets", "minilm", "dfad_as_published", "dfad")

ABLATIONS: dict[str, Ablation] = {
    "no_shift": Ablation(says="weight from cos itself, negative where cos is", without="shift"),
    "no_floor": Ablation(says="ε = 0", changes={"epsilon": 0.0}),
    "no_running_mean": Ablation(
        says="weight from this batch's cos, from the first step on", changes={"cos_momentum": 0.0, "warmup_steps": 0}
    ),
    "no_detach": Ablation(says="the weight's gradient flows", without="detach"),
    "no_centring": Ablation(says="the source's sigmoid(0.5·(l − 6))", without="centring"),
    "no_sum": Ablation(says="weights not normalised to sum 1", without="sum"),
    "no_standardising": Ablation(says="features compared in their own scale", without="standardising"),
    "no_relation": Ablation(says="no token-by-token similarity in the layer level", changes={"relation": 0.0}),
    "no_quantizer": Ablation(says="the teacher's features past the student's quantizer", quantizer=False),
    "no_logits": Ablation(says="no KL of the logits beside", changes={"kl_share": 0.0}),
    "no_token": Ablation(says="no token level", changes={"levels": ("layer", "global")}),
    "no_layer": Ablation(says="no layer level", changes={"levels": ("token", "global")}),
    "no_global": Ablation(says="no global level", changes={"levels": ("token", "layer")}),
}
# no mends, but choices that the default could have made otherwise
VARIANTS: dict[str, Ablation] = {
    "uniform_weights": Ablation(says="all pairs alike: nothing dynamic", changes={"weighting": "uniform"}),
    "bell": Ablation(says="the bell by depth in place of the sigmoid", changes={"depth": "bell"}),
    "inverse": Ablation(says="the weight goes to the pair aligned least", without="inverse"),
    "pairing_cka": Ablation(says="pairs by CKA on the first batches", changes={"pairing": "cka"}),
    "pairing_last": Ablation(says="the teacher's last layers", changes={"pairing": "last"}),
    "all_tokens": Ablation(says="every position at each step, not three in eight", changes={"token_share": 1.0}),
}
SYSTEMS = (*SIX, *ABLATIONS, *VARIANTS)


def names_expand(words: Sequence[str]) -> list[str]:
    """System names for `words`: names, "six", "ablate" (every mend left out), "variants"; InputError if unknown."""
    groups = {"six": SIX, "ablate": tuple(ABLATIONS), "variants": tuple(VARIANTS)}
    names: list[str] = []
    for word in words:
        if word not in groups and word not in SYSTEMS:
            raise InputError(f"systems: unknown {word!r}; there are {', '.join((*groups, *SYSTEMS))}")
        names += [name for name in groups.get(word, (word,)) if name not in names]
    return names


def config_of(system: str, *, tuned: Tuned, relation_heads: int) -> DFADConfig:
    """The system's settings. Raises InputError for an unknown one, and for "minilm" without relation heads."""
    logits = {"temperature": tuned.temperature, "kl_share": tuned.share}
    default = replace(presets.default(), alpha=tuned.dfad_alpha, **logits)
    if system == "minilm" and not relation_heads:
        raise InputError("minilm: needs attention in both models")
    plain: dict[str, Callable[[], DFADConfig]] = {
        "ce": presets.ce_only,
        "kd": lambda: presets.plain_kd(temperature=tuned.temperature, share=tuned.share),
        "fitnets": lambda: replace(presets.fitnets(alpha=tuned.fitnets_alpha), **logits),
        "minilm": lambda: presets.minilm(alpha=tuned.minilm_alpha, relation_heads=relation_heads),
        "dfad_as_published": presets.as_published,
        "dfad": lambda: default,
    }
    if system in plain:
        return plain[system]()
    return replace(default, **(_ablation(system).changes or {}))


def criterion_of(
    system: str,
    config: DFADConfig,
    shown: Sequence[tuple[Features, Features]],
    *,
    quantizer: Quantize | None = None,
) -> DFAD:
    """The loss for (student, teacher) features of the first batches; its projectors come of the global random state.

    quantizer: the student's, where it is trained for integers: a mend of DFAD's, so no other system uses it.
    """
    if system in SIX:
        return DFAD.measured(config, shown, quantizer=quantizer if system == "dfad" else None)
    ablation = _ablation(system)
    if not ablation.quantizer:
        quantizer = None
    if not ablation.without:
        return DFAD.measured(config, shown, quantizer=quantizer)
    criterion = Unmended.measured(config, shown, quantizer=quantizer)
    criterion.leave_out(ablation.without)
    return criterion


def applies(system: str, case: Case) -> bool:
    """False where the case has not what the system is about: attention in both models, a student's quantizer."""
    if system == "no_quantizer":
        return case.student.bits > 0
    return system != "minilm" or case.relation_heads > 0


def _ablation(system: str) -> Ablation:
    found = {**ABLATIONS, **VARIANTS}.get(system)
    if found is None:
        raise InputError(f"system: unknown {system!r}; there are {', '.join(SYSTEMS)}")
    return found
