"""Operators under torch.compile(fullgraph=True): one graph each, and what naive or eager computes.

In a child process, since the checks of shapes that the other tests install are no code that can be traced; one child
for all, since torch takes longer to begin than to compile them.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[4]
CODE = {
    "norm_qkv": """if True:
        import torch
        from ml_core.kernels.norm_qkv.naive import Norm
        from ml_core.kernels.norm_qkv.op import norm_qkv
        x, w = torch.randn(2, 7, 24), torch.randn(96, 24, requires_grad=True)
        run = lambda x, w, path: norm_qkv(x, w, heads=2, norm=Norm(kind="layer", eps=1e-5), path=path)
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        for got, wanted in zip(compiled(x, w, "auto"), run(x, w, "naive")):
            assert torch.allclose(got, wanted, atol=1e-5)
            found = [torch.autograd.grad(y.sum(), w, retain_graph=True)[0] for y in (got, wanted)]
            assert torch.allclose(*found, atol=1e-4)
    """,
    "norm_mlp": """if True:
        import torch
        from ml_core.kernels.norm_mlp.op import norm_mlp
        from ml_core.kernels.norm_qkv.naive import Norm
        x, up, down = torch.randn(2, 7, 20), torch.randn(48, 20, requires_grad=True), torch.randn(20, 48)
        norm = Norm(kind="layer", eps=1e-5)
        run = lambda x, up, path: norm_mlp(x, (up, None), (down, None), activation="gelu", norm=norm, path=path)
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        outs = compiled(x, up, "auto"), run(x, up, "naive")
        assert torch.allclose(*outs, atol=1e-4)
        assert torch.allclose(*(torch.autograd.grad(y.sum(), up)[0] for y in outs), atol=1e-3)
    """,
    "gemv_int8": """if True:
        import torch
        from ml_core.kernels.gemv_int8.op import gemv_int8, quantize_rows
        weight, scale = quantize_rows(torch.randn(63, 100))
        x, bias = torch.randn(2, 100), torch.randn(63)
        run = lambda x: gemv_int8(x * 2, weight, scale, bias) + 1
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), run(x))
        torch.library.opcheck(torch.ops.assay.gemv_int8, (x, weight, scale, bias, "auto"))
    """,
    "dpe_attention": """if True:
        import torch
        from ml_core.kernels.dpe_attention.op import dpe_attention
        torch.manual_seed(0)
        tensors = [torch.randn(2, 2, 33, 8) for _ in range(3)] + [torch.randn(2, 41)]
        mask = torch.arange(33).expand(2, 33) < torch.tensor([[33], [20]])
        run = lambda *t: dpe_attention(*t, causal=True, key_mask=mask, backend="blockwise") * 2
        results = []
        for call in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
            leaves = [each.clone().requires_grad_() for each in tensors]
            out = call(*leaves)
            out.pow(2).sum().backward()
            results.append([out.detach(), *(each.grad for each in leaves)])
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*results))
        assert all(x.abs().sum() > 0 for x in results[1])
    """,
}
ON_GPU = {
    "norm_qkv": """if True:
        import torch
        from ml_core.kernels.norm_qkv.naive import Norm
        from ml_core.kernels.norm_qkv.op import norm_qkv
        x, w = torch.randn(2, 7, 64, device="cuda").half(), torch.randn(256, 64, device="cuda").half()
        run = lambda x: norm_qkv(x, w, heads=2, norm=Norm(kind="layer", eps=1e-5), path="triton")
        with torch.no_grad():
            for got, wanted in zip(torch.compile(run)(x), run(x)):
                assert torch.allclose(got, wanted, atol=1e-2)
    """,
    "dpe_attention": """if True:
        import torch
        from ml_core.kernels.dpe_attention.op import dpe_attention
        torch.manual_seed(0)
        tensors = [torch.randn(2, 2, 200, 64, device="cuda") for _ in range(3)] + [torch.randn(2, 399, device="cuda")]
        run = lambda *t: dpe_attention(*t, causal=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            eager, compiled = run(*tensors), torch.compile(run, fullgraph=True)(*tensors)
        assert eager.dtype == torch.bfloat16
        assert torch.equal(eager, compiled)
    """,
}
EACH = """if True:
    import json, sys, traceback
    import torch
    said = {}
    for name, code in json.load(sys.stdin).items():
        torch._dynamo.reset()
        try:
            exec(code, {})
            said[name] = ""
        except Exception:
            said[name] = traceback.format_exc()
    print(json.dumps(said))
"""


def faults_of(code):
    """What went wrong with each: nothing is the empty text."""
    done = subprocess.run(
        [sys.executable, "-c", EACH], cwd=ROOT, input=json.dumps(code), check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def faults():
    return faults_of(CODE)


@pytest.mark.parametrize("name", list(CODE))
def test_it_compiles_in_one_graph_and_computes_the_same(faults, name):
    assert faults[name] == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_kernels_run_under_compile():
    assert faults_of(ON_GPU) == dict.fromkeys(ON_GPU, "")
