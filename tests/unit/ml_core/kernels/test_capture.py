"""While a graph is captured nothing is collected: on the CPU the switch, on a GPU a capture with old graphs about."""

import gc
import weakref

import pytest
import torch

from ml_core.kernels.capture import uncollected

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


class Held:
    """Something that only the collector frees: it refers to itself."""

    def __init__(self, what=None):
        self.own, self.what = self, what


def test_garbage_goes_before_and_none_inside():
    before = weakref.ref(Held())
    with uncollected():
        assert before() is None
        inside = weakref.ref(Held())
        for _ in range(3 * gc.get_threshold()[0]):
            Held()  # enough allocations to start the collector, were it on
        assert inside() is not None
    assert gc.isenabled()


def test_who_has_it_off_keeps_it_off_and_an_error_turns_it_on_again():
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    with pytest.raises(RuntimeError), uncollected():
        raise RuntimeError
    assert gc.isenabled()


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_an_old_graph_in_a_cycle_does_not_end_a_capture():
    x = torch.ones(8, device="cuda")

    def captured(*, garbage):
        graph = torch.cuda.CUDAGraph()
        with uncollected(), torch.cuda.graph(graph):
            made = x + 1
            if garbage:
                Held(old.pop())
                for _ in range(3 * gc.get_threshold()[0]):
                    Held()
            made = made * 2
        return graph, made

    old = [captured(garbage=False)]
    graph, made = captured(garbage=True)
    graph.replay()
    assert made.tolist() == [4.0] * 8
