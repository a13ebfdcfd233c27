"""Randomness: named seeds that are the same everywhere, and a state that goes on."""

import torch

from ml_core.seed import derive, numpy_generator, rng_restore, rng_state, seed_all, torch_generator


def test_a_named_seed_is_the_same_on_every_machine():
    assert derive(7, "bank", 3) == 568605665672141287
    assert len({derive(0, "a"), derive(0, "b"), derive(1, "a"), derive(0, "a", 1)}) == 4


def test_generators_of_equal_names_agree():
    assert numpy_generator(1, "x").random() == numpy_generator(1, "x").random()
    assert torch.equal(
        torch.rand(3, generator=torch_generator(1, "x")), torch.rand(3, generator=torch_generator(1, "x"))
    )


def test_the_state_goes_on_where_it_was():
    seed_all(3)
    torch.rand(5)
    state = rng_state()
    expected = torch.rand(4)
    torch.rand(9)
    rng_restore(state)
    assert torch.equal(torch.rand(4), expected)
