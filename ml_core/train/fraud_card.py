"""The model card that travels with a fraud artifact."""

from collections.abc import Mapping

from ml_core.data.extra_inputs import ExtraInputs
from ml_core.train.fraud_stages import FraudTraining


def model_card(
    training: FraudTraining,
    *,
    metrics: Mapping[str, float],
    parameters: int,
    extras: ExtraInputs | None = None,
) -> str:
    """Markdown: what it is, what it learnt from, what was measured, what it must not be used for."""
    if training.banks:
        source = (
            f"{training.banks} banks simulated by ml_core/data/bank.py (measured on {training.guard_banks} others). "
            "Half of them keep to the rules that the Fraud Detection Handbook describes (its large-amount rule of 220 "
            "included, which is the default of our simulator); no row of the Handbook's files was seen."
        )
    else:
        source = "the labelled transactions of one bank; its last week was held back and serves the figures below."
    further = " No personal data."
    if extras is not None:
        names = ", ".join(extras.names)
        further = f"\n- Further inputs, as the mapping `{extras.mapping.name}` declares them: {names}."
    figures = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(metrics.items()))
    return f"""# Fraud student ({training.name})

Scores card transactions in real time: a transformer of {training.student.layers} blocks, width {training.student.d},
over the transaction, the newest {training.student.card_tokens} events of its card and the newest
{training.student.terminal_tokens} of its terminal; {parameters:,} numbers, INT8 weights and activations.
It also reads hand-made window features; it does not do without them.

- Teacher: {training.teacher}; distilled by DFAD with alpha {training.dfad.alpha}.
- Learnt from: {source}
- Inputs: amount, time, the card's and the terminal's own past, labels only once they are known.{further}
- Calibrated by Platt scaling on held-back rows.

| held back | value |
|---|---|
{figures}

Not for: declining a payment without a person or a rule beside it; banks whose labels come later than a few weeks;
amounts in currencies of another scale without retraining (amount thresholds were learnt in euros).
"""
