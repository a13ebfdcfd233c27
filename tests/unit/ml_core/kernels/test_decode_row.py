"""A one-row step's operators: every path against naive in float64, what is written where, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported

from ml_core.errors import InputError
from ml_core.kernels.decode_row import naive, op
from ml_core.kernels.gemv_int8.naive import quantize_rows
from ml_core.kernels.norm_qkv.paths import PathTable

ROOT = Path(__file__).resolve().parents[4]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLACK = 4.0  # a path may be this much further off than naive in the same dtype
PATHS = ["triton", "triton-2x64w4s2", "triton-8x32w4s2"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Triton's interpreter cuts bf16 where a GPU rounds: bf16 is tested on GPUs alone
HERE = DTYPES if DEVICE == "cuda" else DTYPES[:2]
EPS = 1e-5


def drawn(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def parts_of(c, d, *, kind, bias, dtype):
    weight = drawn(c, d, seed=1) * d**-0.5
    offset = drawn(c, seed=2, dtype=dtype) if bias else None
    if kind == "int8":
        levels, scale = quantize_rows(weight)
        return levels, scale, offset
    return weight.to(dtype), None, offset


def wide(tensor):
    return tensor if tensor is None or tensor.dtype == torch.int8 else tensor.double()


def off(got, wanted):
    """Relative RMS."""
    return float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


def near(got, plain, wanted):
    return off(got, wanted) <= SLACK * max(off(plain, wanted), 1e-7)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("dtype", HERE)
@pytest.mark.parametrize("kind", ["dense", "int8"])
@pytest.mark.parametrize("path", PATHS)
def test_products_with_norm_residual_and_gate_are_as_near_to_the_truth_as_naive(dtype, kind, path):
    for c, d, bias in ((10, 24, True), (36, 100, False)):
        x, norm, parts = (
            drawn(1, d, dtype=dtype),
            drawn(d, seed=3, dtype=dtype),
            parts_of(c, d, kind=kind, bias=bias, dtype=dtype),
        )
        exact = tuple(wide(each) for each in parts)
        for name in ("normed", "gated"):
            wanted = getattr(naive, name)(x.double(), norm.double(), exact, eps=EPS)
            plain = getattr(naive, name)(x, norm, parts, eps=EPS)
            got = getattr(op, name)(x, norm, parts, eps=EPS, path=path)
            assert got.dtype == plain.dtype
            assert near(got, plain, wanted), name
        residual = drawn(1, c, seed=4, dtype=dtype)
        wanted = naive.added(residual.double(), x.double(), exact)
        assert near(op.added(residual, x, parts, path=path), naive.added(residual, x, parts), wanted)


@pytest.mark.parametrize("dtype", HERE)
@pytest.mark.parametrize("kind", ["dense", "int8"])
@pytest.mark.parametrize("path", PATHS)
def test_queries_are_turned_and_keys_and_values_land_in_their_slot_alone(dtype, kind, path):
    h, g, k, m, d, at = 4, 2, 6, 9, 20, 5
    x, norm, parts = (
        drawn(1, d, dtype=dtype),
        drawn(d, seed=3, dtype=dtype),
        parts_of((h + 2 * g) * k, d, kind=kind, bias=True, dtype=dtype),
    )
    angles = torch.arange(m)[:, None] * torch.tensor([1.0, 0.3, 0.1]).repeat(2)[None]
    cos, sin = (each.to(DEVICE, dtype) for each in (angles.cos(), angles.sin()))
    given = {"eps": EPS, "position": torch.tensor([at], device=DEVICE)}

    def run(function, x, norm, parts, dtype, **more):
        keys, values = (torch.full((1, g, m, k), torch.nan, device=DEVICE, dtype=dtype) for _ in range(2))
        q = function(x, norm, parts, cos=cos.to(dtype), sin=sin.to(dtype), keys=keys, values=values, **given, **more)
        return q, keys, values

    wanted = run(naive.turned, x.double(), norm.double(), tuple(wide(each) for each in parts), torch.float64)
    plain = run(naive.turned, x, norm, parts, dtype)
    got = run(op.turned, x, norm, parts, dtype, path=path)
    assert near(got[0], plain[0], wanted[0])
    for ours, theirs, right in zip(got[1:], plain[1:], wanted[1:], strict=True):
        assert near(ours[:, :, at], theirs[:, :, at], right[:, :, at])
        assert ours[:, :, torch.arange(m) != at].isnan().all()


@pytest.mark.parametrize("dtype", HERE)
@pytest.mark.parametrize("h", [4, 2])
@pytest.mark.parametrize(("m", "at"), [(70, 0), (70, 69), (1300, 511), (1300, 512), (1300, 1200)])
def test_attention_sees_the_slots_up_to_its_position_and_no_other(dtype, h, m, at):
    g, k = 2, 6
    q, keys, values = (
        drawn(h, k, dtype=dtype),
        drawn(1, g, m, k, seed=1, dtype=dtype),
        drawn(1, g, m, k, seed=2, dtype=dtype),
    )
    keys[:, :, at + 1 :], values[:, :, at + 1 :] = torch.nan, torch.nan
    position = torch.tensor([at], device=DEVICE)
    wanted = naive.attended(q.double(), keys.double(), values.double(), position=position)
    got = op.attended(q, keys, values, position=position, most=m, path="triton")
    assert near(got, naive.attended(q, keys, values, position=position), wanted)


def test_attention_written_out():
    q, keys, values = drawn(2, 4), drawn(1, 1, 3, 4, seed=1), drawn(1, 1, 3, 4, seed=2)
    got = naive.attended(q.double(), keys.double(), values.double(), position=torch.tensor([1], device=DEVICE))
    for head in range(2):
        scores = [float((q[head].double() * keys[0, 0, slot].double()).sum()) / 2 for slot in range(2)]
        weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
        wanted = sum(float(weights[slot]) * values[0, 0, slot].double() for slot in range(2))
        assert torch.allclose(got[0, 4 * head : 4 * head + 4], wanted)


def test_on_a_cpu_auto_is_naive_and_says_so():
    if DEVICE == "cuda":
        pytest.skip("a GPU is here")
    x, parts = drawn(1, 24), parts_of(10, 24, kind="dense", bias=False, dtype=torch.float32)
    assert "naive" in str(op.choose("normed", x, parts))
    assert op.candidates(x) == ["naive"]
    assert torch.equal(op.added(drawn(1, 10), x, parts), naive.added(drawn(1, 10), x, parts))


def test_what_was_measured_is_chosen(monkeypatch):
    table = PathTable()
    monkeypatch.setattr(op, "TABLE", table)
    monkeypatch.setattr(op, "serves", lambda x: True)
    x, parts = drawn(1, 24), parts_of(10, 24, kind="dense", bias=False, dtype=torch.float32)
    norm = drawn(24, seed=3)
    some = ["triton-2x64w4s2", "triton-8x32w4s2"]
    monkeypatch.setattr(op, "candidates", lambda x: some)
    times = iter([2.0, 1.0])

    def run(path):
        return op.normed(x, norm, parts, eps=EPS, path=path)

    found = op.measure("normed", run, x, parts, clock=lambda call: next(times), table=table)
    assert found["ms"] == dict(zip(some, [2.0, 1.0], strict=True))
    assert op.choose("normed", x, parts).path == some[1]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"weight": torch.ones(10, 23)}, "weight:"),
        ({"weight": torch.ones(24, 10).T}, "weight:"),
        ({"weight": torch.ones(10, 24, dtype=torch.int8)}, "scale:"),
        ({"scale": torch.ones(10)}, "scale:"),
        ({"bias": torch.ones(9)}, "bias:"),
        ({"x": torch.ones(1, 48)[:, ::2]}, "contiguous"),
        ({"path": "cublas"}, "path:"),
        ({"path": "triton-3"}, "path:"),
    ],
)
def test_what_does_not_fit_is_named(change, name):
    given = {
        "x": torch.ones(1, 24),
        "norm": torch.ones(24),
        "weight": torch.ones(10, 24),
        "scale": None,
        "bias": None,
        "path": "naive",
    }
    given |= change
    parts = (given["weight"], given["scale"], given["bias"])
    with pytest.raises(InputError, match=name):
        op.normed(given["x"].to(DEVICE), given["norm"], parts, eps=EPS, path=given["path"])


def test_other_misfits_are_named():
    x, norm, keys = drawn(1, 24), drawn(24, seed=3), torch.zeros(1, 2, 8, 6, device=DEVICE)
    odd = parts_of(11, 24, kind="dense", bias=False, dtype=torch.float32)
    with pytest.raises(InputError, match="gate and up"):
        op.gated(x, norm, odd, eps=EPS)
    rope = {
        "cos": torch.ones(8, 6, device=DEVICE),
        "sin": torch.ones(8, 6, device=DEVICE),
        "position": torch.tensor([0], device=DEVICE),
    }
    with pytest.raises(InputError, match="no heads"):
        op.turned(x, norm, odd, eps=EPS, keys=keys, values=keys.clone(), **rope)
    q = torch.zeros(3, 6, device=DEVICE)
    with pytest.raises(InputError, match="evenly"):
        op.attended(q, keys, keys, position=rope["position"], most=8)
    with pytest.raises(InputError, match="most"):
        op.attended(q[:2], keys, keys, position=rope["position"], most=9)
    with pytest.raises(InputError, match="none of auto"):
        op.attended(q[:2], keys, keys, position=rope["position"], most=8, path="flash")
    parts = parts_of(10, 24, kind="dense", bias=False, dtype=torch.float32)
    with pytest.raises(InputError, match="norm:"):
        op._taken("normed", x, parts, norm=norm[:23], path="naive")
    with torch.enable_grad(), pytest.raises(InputError, match="inference only"):
        op.gated(
            x.clone().requires_grad_(), norm, parts_of(10, 24, kind="dense", bias=False, dtype=torch.float32), eps=EPS
        )


COMPILE = """if True:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from ml_core.kernels.decode_row import kernel

    def compiled(fn, given, *, weight="bf16", warps=4):
        names = [each.name for each in fn.params]
        kind = lambda name: (
            "constexpr" if name in given else f"*{weight}" if name == "w_ptr" else "*i64" if name == "position_ptr"
            else "*fp32" if name in ("scale_ptr", "parts_ptr", "sums_ptr") else "*bf16" if name.endswith("_ptr")
            else "fp32" if name in ("eps", "scale") else "i32"
        )
        attrs = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(names) if kind(name)[0] == "*"}
        constants = {(names.index(name),): value for name, value in given.items() if name in names}
        source = ASTSource(fn, {name: kind(name) for name in names}, constexprs=constants, attrs=attrs)
        return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})

    tiles = kernel.CANDIDATES[3]
    for weight in ("bf16", "i8"):
        for form in (kernel.PLAIN, kernel.ADDED, kernel.GATED, kernel.TURNED):
            given = {"D": 4096, "FORM": form, "NORM": form != kernel.ADDED, "SCALED": weight == "i8", "BIAS": False,
                     "HALF": 64, "BC": tiles.columns, "BD": tiles.depth, "STAGES": tiles.stages, "EARLY": True}
            ptx = compiled(kernel._product, given, weight=weight, warps=tiles.warps).asm["ptx"]
            # weights before the wait, the rest behind it
            before, _, behind = ptx.partition("griddepcontrol.wait")
            assert "griddepcontrol.launch_dependents" in before, form
            assert 0 < before.count("ld.global") <= (4 if form in (kernel.GATED, kernel.TURNED) else 2), form
            assert "st.global" not in before, form
    for whole in (True, False):
        given = {"REPEAT": 4, "K": 128, "BK": 128, "BN": 64, "SHARE": 512, "WHOLE": whole, "EARLY": True}
        assert "ld.global" not in compiled(kernel._attend, given).asm["ptx"].partition("griddepcontrol.wait")[0]
    given = {"K": 128, "BK": 128, "BS": 8, "EARLY": True}
    assert "ld.global" not in compiled(kernel._join, given, warps=1).asm["ptx"].partition("griddepcontrol.wait")[0]
"""


@pytest.mark.slow
def test_for_hopper_they_compile_and_read_what_others_write_behind_the_wait_alone(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
