"""Packed weights: a third of the bytes, each weight within 2⁻⁶ of itself, unused words zero, integers whole."""

import torch

from tests.bench.weights_pack import packed, unpacked


def test_weights_come_back_within_their_mantissa_and_unused_words_are_zero():
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(50, 64, generator=generator)
    layer = torch.randn(64, 64, generator=generator) * 0.02
    tensors = {"embeddings.word_embeddings.weight": words, "layer": layer, "positions": torch.arange(5)[None]}
    blob = packed(tensors, kept=[3, 7, 49])
    back = unpacked(blob)
    assert {name: x.shape for name, x in back.items()} == {name: x.shape for name, x in tensors.items()}
    assert torch.equal(back["positions"], tensors["positions"])
    assert ((back["layer"] - layer).abs() <= layer.abs() * 2**-6).all()
    assert not torch.equal(back["layer"], layer)
    kept = back["embeddings.word_embeddings.weight"]
    assert kept.any(1).nonzero().flatten().tolist() == [3, 7, 49]
    assert ((kept[7] - words[7]).abs() <= words[7].abs() * 2**-6).all()
    assert len(blob) < 0.4 * 4 * (words.numel() + layer.numel())
