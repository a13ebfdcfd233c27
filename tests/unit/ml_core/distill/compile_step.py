"""Run as a script by test_compiled: the loss step of some configs under torch.compile against the eager one."""

import sys

import torch

from ml_core.distill.dfad import DFAD, DFADConfig, compiled
from ml_core.distill.features import Features, HeadTaps
from ml_core.quant.scheme import fake_activation

CONFIGS = {
    "default": (DFADConfig(warmup_steps=1), None),
    "everything": (
        DFADConfig(pairing="learned", levels=("token", "layer", "global", "heads"), relation_heads=2, depth="bell"),
        fake_activation,
    ),
    "as_published": (DFADConfig(weighting="as_published"), None),
}


def shown(seed, *, widths, n, device, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(n)[None, :] < torch.tensor([n, n - 1, n, n - 2])[:, None]

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(device).requires_grad_(requires_grad)

    mask = mask.to(device)
    return Features(
        layers=tuple(normal(4, n, width) for width in widths),
        pooled=normal(4, widths[-1]),
        mask=mask,
        logits=normal(4, 3),
        heads=(HeadTaps(name="last", q=normal(4, n, 8), k=normal(4, n, 8), v=normal(4, n, 8)),),
    )


def run(config, quantizer, *, backend, device):
    """Losses, gradients and buffers after three steps; the number of graphs."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # unequal widths and, where the taps allow it, unequal token counts
    n = 5 if "heads" in config.levels else 7
    dfad = DFAD(config, (6,) * 4, (8, 8), quantizer=quantizer).to(device)
    step = dfad if backend is None else compiled(dfad, backend=backend)
    out = []
    for number in range(3):
        student = shown(number, widths=(8, 8), n=5, device=device, requires_grad=True)
        teacher = shown(10 + number, widths=(6,) * 4, n=n, device=device)
        loss = step(student, teacher, (student.logits**2).mean(), number / 3)
        loss.total.backward()
        out += [loss.total.detach(), loss.weights.detach(), loss.cos.detach(), *(x.grad for x in student.layers)]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return [*out, *(p.grad for p in dfad.parameters() if p.grad is not None), *dfad.buffers()], graphs


def main(backend: str, device: str) -> None:
    torch.set_num_threads(1)
    for name, (config, quantizer) in CONFIGS.items():
        want, _ = run(config, quantizer, backend=None, device=device)
        got, graphs = run(config, quantizer, backend=backend, device=device)
        assert len(want) == len(got), name
        worst = max(float((a - b).abs().max()) for a, b in zip(want, got, strict=True))
        assert worst < (1e-5 if device == "cpu" else 1e-3), (name, worst)
        # one graph for all three values of `progress`
        assert graphs == 1, (name, graphs)
    print("equal")


if __name__ == "__main__":
    main(*sys.argv[1:])
