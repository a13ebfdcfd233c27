"""The teacher's cache: how true, how small, resumable, and strict about whose features these are."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from ml_core.distill.cache import MANIFEST, TeacherCache, int8_encode, module_digest
from ml_core.distill.features import Features
from ml_core.errors import ArtifactError, InputError

EXAMPLES = 24


@pytest.fixture(scope="module")
def teacher():
    """Features of 24 rows of 20 tokens at most, with a channel that dwarfs the others, as language models have."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(6, 21, (EXAMPLES,), generator=generator)
    mask = torch.arange(20)[None, :] < lengths[:, None]
    layers = []
    for _ in range(2):
        x = torch.randn(EXAMPLES, 20, 256, generator=generator)
        x[..., 7] *= 300.0
        x[:, 0, 9] += 500.0
        layers.append(x)
    return Features(
        layers=tuple(layers),
        pooled=torch.randn(EXAMPLES, 256, generator=generator),
        mask=mask,
        logits=torch.randn(EXAMPLES, 3, generator=generator),
        names=("a", "b"),
    )


def rows_of(shown, rows):
    at = torch.tensor(list(rows))
    return replace(
        shown,
        layers=tuple(layer[at] for layer in shown.layers),
        pooled=shown.pooled[at],
        mask=None if shown.mask is None else shown.mask[at],
        logits=None if shown.logits is None else shown.logits[at],
        heads=tuple(replace(t, q=t.q[at], k=t.k[at], v=t.v[at]) for t in shown.heads),
    )


def opened(folder, **changed):
    settings = {"teacher": "t1", "data": "d1", "examples": EXAMPLES, "shard_rows": 7} | changed
    return TeacherCache(folder, **settings)


def filled(folder, shown, **changed):
    cache = opened(folder, **changed)
    cache.fill(lambda rows: rows_of(shown, rows))
    return cache


def test_every_token_comes_back_with_a_cosine_of_999_in_a_thousand(tmp_path, teacher):
    back = filled(tmp_path, teacher).read(range(EXAMPLES))
    mask = teacher.mask[:, : back.mask.shape[1]]
    assert torch.equal(back.mask, mask)
    for a, b in zip([*teacher.layers], [*back.layers], strict=True):
        a = a[:, : b.shape[1]]
        assert float(torch.cosine_similarity(a, b, dim=-1)[mask].min()) >= 0.999
        # the dwarfed channels are true too
        others = [i for i in range(256) if i not in (7, 9)]
        assert float(torch.cosine_similarity(a[..., others], b[..., others], dim=-1)[mask].min()) >= 0.97
        assert float(b[~mask].abs().max()) == 0.0
    assert float(torch.cosine_similarity(teacher.pooled, back.pooled, dim=-1).min()) >= 0.999
    assert torch.allclose(teacher.logits, back.logits, atol=2e-3)
    assert back.names == ("a", "b")


def test_the_folder_is_at_most_half_of_what_the_tensors_are_in_bf16(tmp_path, teacher):
    cache = filled(tmp_path, teacher, shard_rows=24)
    tensors = [*teacher.layers, teacher.pooled, teacher.logits]
    assert cache.size_bytes() == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert cache.size_bytes() <= 0.5 * sum(2 * x.numel() for x in tensors)


def test_without_padding_it_is_half_and_the_scales(tmp_path):
    generator = torch.Generator().manual_seed(1)
    shown = Features(
        layers=tuple(torch.randn(64, 32, 768, generator=generator) for _ in range(2)), pooled=torch.randn(64, 768)
    )
    cache = filled(tmp_path, shown, examples=64, shard_rows=64)
    tensors = [*shown.layers, shown.pooled]
    assert cache.size_bytes() <= 0.51 * sum(2 * x.numel() for x in tensors)
    assert cache.read([3]).mask is None


def test_rows_come_in_the_order_asked_for_and_padded_as_asked_for(tmp_path, teacher):
    cache = filled(tmp_path, teacher)
    back = cache.read([20, 3, 3], n=20)
    assert back.layers[0].shape == (3, 20, 256)
    assert torch.equal(back.layers[0][1], back.layers[0][2])
    assert torch.allclose(back.logits, teacher.logits[[20, 3, 3]], atol=2e-3)
    with pytest.raises(InputError, match="longest row"):
        cache.read([20, 3], n=2)
    with pytest.raises(InputError, match="99"):
        cache.read([99])


def test_queries_keys_and_values_are_kept_too(tmp_path, features):
    shown = features(b=10, widths=(8,), heads=(12,), dtype=torch.float32)
    back = filled(tmp_path, shown, examples=10).read(range(10))
    assert back.heads[0].name == "blocks.0"
    assert float(torch.cosine_similarity(back.heads[0].k, shown.heads[0].k, dim=-1).min()) >= 0.999


def test_cut_off_it_goes_on_behind_the_last_whole_shard(tmp_path, teacher):
    asked = []

    def show(rows):
        asked.append(rows.start)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return rows_of(teacher, rows)

    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path / "cut").fill(show)
    (tmp_path / "cut" / ".rows-000000014.safetensors.partial").write_bytes(b"half")
    resumed = opened(tmp_path / "cut")
    assert resumed.rows_done == 14
    done = []
    resumed.fill(show, on_shard=lambda rows, of: done.append((rows, of)))
    assert asked == [0, 7, 14, 14, 21]
    assert done == [(21, 24), (24, 24)]
    whole = filled(tmp_path / "whole", teacher)
    assert [s.sha256 for s in resumed.manifest.shards] == [s.sha256 for s in whole.manifest.shards]
    resumed.verify()


@pytest.mark.parametrize(
    ("changed", "named"), [({"teacher": "t2"}, "t2"), ({"data": "d2"}, "d2"), ({"examples": 9}, "9")]
)
def test_another_teacher_other_data_and_another_size_are_refused(tmp_path, teacher, changed, named):
    filled(tmp_path, teacher)
    with pytest.raises(ArtifactError, match=named):
        opened(tmp_path, **changed)


def test_damage_is_found(tmp_path, teacher):
    cache = filled(tmp_path, teacher)
    path = tmp_path / cache.manifest.shards[1].file
    body = bytearray(path.read_bytes())
    body[-5] ^= 1
    path.write_bytes(bytes(body))
    with pytest.raises(ArtifactError, match="digest"):
        opened(tmp_path).verify()
    path.write_bytes(bytes(body[:-1]))
    with pytest.raises(ArtifactError, match="another size"):
        opened(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | {"surprise": 1}))
    with pytest.raises(ArtifactError, match="surprise"):
        opened(tmp_path)


def test_features_of_another_form_padding_in_front_and_too_few_rows_are_refused(tmp_path, teacher):
    cache = opened(tmp_path)
    first = [True]

    def show(rows):
        shown = rows_of(teacher, rows)
        return shown if first.pop() else replace(shown, logits=None)

    first.insert(0, False)
    with pytest.raises(InputError, match="another form"):
        cache.fill(show)
    with pytest.raises(InputError, match="padding"):
        opened(tmp_path / "b").fill(lambda rows: rows_of(replace(teacher, mask=teacher.mask.flip(1)), rows))
    with pytest.raises(InputError, match="rows"):
        opened(tmp_path / "c").fill(lambda rows: rows_of(teacher, [0]))


def test_zero_tokens_stay_zero():
    levels, scale, channels = int8_encode(torch.zeros(3, 4))
    assert float((levels.float() * scale.float()[:, None] * channels).abs().max()) == 0.0


def test_a_module_s_digest_tells_weights_apart():
    torch.manual_seed(0)
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    assert module_digest(one) != module_digest(other)
    other.load_state_dict(one.state_dict())
    assert module_digest(one) == module_digest(other)
