"""Graphs in buckets: which bucket, padding, slices, errors everywhere; capture and replay where there is CUDA."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ml_core.errors import InputError
from ml_core.serving.graphs import MOST_BUCKETS, EagerRunner, GraphPool, GraphRunner, runner_for

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
RUNNERS = [EagerRunner, pytest.param(GraphRunner, marks=[pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="CUDA")])]
SIZES = [(1, 4), (2, 4), (2, 8), (4, 8)]


def given(sizes=SIZES, *, fill=None):
    """Buckets of x (b, n, 3) and a bias (3), to sums over n (b, 3) and x itself doubled (b, n, 3)."""
    return {
        "device": DEVICE,
        "examples": [{"x": torch.zeros(b, n, 3), "bias": torch.zeros(3)} for b, n in sizes],
        "axes": {"x": ("b", "n", None), "bias": (None,)},
        "outputs": [("b", None), ("b", "n", None)],
        "fill": fill or {},
    }


def sums(x, bias):
    return x.sum(1) + bias, x * 2


def inputs(b, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randint(-9, 9, shape, generator=generator).float().to(DEVICE)  # noqa: E731
    return {"x": draw(b, n, 3), "bias": draw(3)}


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(
    ("b", "n", "calls"), [(1, 4, "b=1 n=4"), (1, 5, "b=2 n=8"), (3, 1, "b=4 n=8"), (2, 3, "b=2 n=4")]
)
def test_the_smallest_bucket_that_fits_runs_and_the_padding_is_cut_off(runner, b, n, calls):
    made = runner(sums, **given(random.Random(5).sample(SIZES, 4)))
    values = inputs(b, n)
    found = made(**values)
    for got, wanted in zip(found, sums(**values), strict=True):
        assert torch.equal(got, wanted)
    assert [str(each) for each in made.buckets if each.calls] == [calls]
    assert [each.numel for each in made.buckets] == sorted((each.numel for each in made.buckets), reverse=True)


@pytest.mark.parametrize("runner", RUNNERS)
def test_what_pads_is_the_callers_choice_and_nothing_of_the_call_before_is_left(runner):
    made = runner(sums, **given([(2, 4)], fill={"x": -1.0}))
    made(**inputs(2, 4))
    values = inputs(1, 3)
    got, _ = made(**values)
    assert torch.equal(got, values["x"].sum(1) - 1 + values["bias"])


@pytest.mark.parametrize("runner", RUNNERS)
def test_results_belong_to_the_caller(runner):
    made = runner(sums, **given([(2, 4)]))
    first, second = inputs(2, 4, seed=1), inputs(2, 4, seed=2)
    held = made(**first)
    kept = [each.clone() for each in held]
    later = made(**second)
    for got, wanted in zip(held, kept, strict=True):
        assert torch.equal(got, wanted)
        got.fill_(torch.nan)  # nor does writing to one reach another
    assert torch.equal(later[0], sums(**second)[0])
    assert torch.equal(made(**first)[0], kept[0])


@pytest.mark.parametrize("runner", RUNNERS)
def test_it_is_called_in_and_out_of_inference_mode_wherever_it_was_made(runner):
    for outside in (torch.inference_mode, torch.no_grad):
        with outside():
            made = runner(sums, **given([(2, 4)]))
        for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
            with mode():
                values = inputs(2, 4)
                assert torch.equal(made(**values)[0], sums(**values)[0])


def test_a_function_that_returns_its_input_hands_out_no_static_buffer():
    same = EagerRunner(
        lambda x: x, device="cpu", examples=[{"x": torch.zeros(2)}], axes={"x": ("b",)}, outputs=[("b",)]
    )
    got = same(x=torch.ones(2))
    assert isinstance(got, torch.Tensor)
    same(x=torch.zeros(2))
    assert torch.equal(got, torch.ones(2))


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"x": torch.zeros(5, 4, 3), "bias": torch.zeros(3)}, "fits into none"),
        ({"x": torch.zeros(4, 9, 3), "bias": torch.zeros(3)}, "fits into none"),
        ({"x": torch.zeros(1, 4, 2), "bias": torch.zeros(3)}, "x: expected"),
        ({"x": torch.zeros(1, 4), "bias": torch.zeros(3)}, "x: expected 3 dimensions"),
        ({"x": torch.zeros(1, 4, 3, dtype=torch.int64), "bias": torch.zeros(3)}, "x: expected torch.float32"),
        ({"x": torch.zeros(1, 4, 3)}, "inputs: expected"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_not_run(runner, values, name):
    made = runner(sums, **given())
    with pytest.raises(InputError, match=name):
        made(**{key: tensor.to(DEVICE) for key, tensor in values.items()})
    assert sum(each.calls for each in made.buckets) == 0


@pytest.mark.parametrize("runner", RUNNERS)
def test_more_than_sixteen_buckets_are_refused(runner):
    with pytest.raises(InputError, match=f"17 buckets; between 1 and {MOST_BUCKETS}"):
        runner(sums, **given([(b, 4) for b in range(1, 18)]))
    with pytest.raises(InputError, match="0 buckets"):
        runner(sums, **given([]))
    assert len(runner(sums, **given([(b, 4) for b in range(1, 17)])).buckets) == 16


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"fill": {"y": 1}}, "fill:"),
        ({"axes": {"x": ("b", "n", None)}}, "examples: expected"),
        ({"examples": [{"x": torch.zeros(1, 4, 3), "bias": torch.zeros(3)}] * 2}, "two of the same"),
        ({"axes": {"x": ("b", "n", None), "bias": ("b",)}}, "bias: b is 3 here"),
    ],
)
def test_wrong_buckets_are_refused_when_the_runner_is_made(change, name):
    with pytest.raises(InputError, match=name):
        EagerRunner(sums, **(given() | change))


@pytest.mark.parametrize(
    ("outputs", "name"),
    [([("b", None)], "returned 2"), ([("b",), ("b",)], "dimensions"), ([(None, "b"), ("b", "n", None)], "not b wide")],
)
def test_outputs_that_are_not_as_described_are_refused(outputs, name):
    with pytest.raises(InputError, match=name):
        EagerRunner(sums, **(given() | {"outputs": outputs}))(**inputs(2, 4))


def test_on_a_cpu_graphs_are_refused_and_the_other_runner_says_its_name():
    with pytest.raises(InputError, match="need CUDA, not cpu"):
        GraphRunner(sums, **(given() | {"device": "cpu"}))
    with pytest.raises(InputError, match="need CUDA"):
        GraphPool(torch.device("cpu"))
    made = runner_for("cpu", sums, **{key: value for key, value in given().items() if key != "device"})
    assert type(made) is EagerRunner
    made(**{key: value.cpu() for key, value in inputs(1, 4).items()})
    assert made.report().splitlines()[0] == "eager, no CUDA graphs on cpu"
    assert "  b=1 n=4: 1 calls" in made.report().splitlines()


@pytest.mark.parametrize("runner", RUNNERS)
def test_threads_take_turns(runner):
    made = runner(sums, **given())
    asked = [inputs(1 + i % 4, 1 + i % 8, seed=i) for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda values: made(**values), asked))
    for values, got in zip(asked, found, strict=True):
        assert torch.equal(got[0], sums(**values)[0])


def _network():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.LayerNorm(64)] * 3
    return torch.nn.Sequential(*layers).to(DEVICE).eval()


def _graphs(order):
    network = _network()
    return network, GraphRunner(
        lambda x: network(x),
        device=DEVICE,
        examples=[{"x": torch.zeros(b, 64)} for b in order],
        axes={"x": ("b", None)},
        outputs=[("b", None)],
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs CUDA")
def test_a_replay_equals_eager_bit_for_bit_in_any_order_of_buckets(seed):
    order = random.Random(seed).sample(range(1, 200), 12)
    network, made = _graphs(order)
    for b in random.Random(seed + 9).sample(order, 12):
        x = torch.randn(b, 64, device=DEVICE)
        with torch.no_grad():
            assert torch.equal(made(x=x), network(x))
    assert made.report().count("1 replays") == 12


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs CUDA")
def test_graphs_share_one_pool():
    def made(rows):
        return GraphRunner(
            lambda x: ((x * 2).relu() + 1).sum(1),  # large on the way, small at the end
            device=DEVICE,
            examples=[{"x": torch.zeros(b, 1 << 20)} for b in rows],
            axes={"x": ("b", None)},
            outputs=[("b",)],
        )

    one, many = made([16]), made(range(1, 17))
    # sixteen buckets of their own memory would take 8.5 times as much
    assert 0 < many.pool.bytes < 2 * one.pool.bytes
    assert "16 graphs in one pool" in many.report()


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs CUDA")
def test_streams_of_two_threads_do_not_overtake_each_other():
    network, made = _graphs([512, 64])

    def run(seed):
        with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
            x = torch.randn(64 if seed % 2 else 512, 64, device=DEVICE)
            return torch.equal(made(x=x), network(x))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(100)))
