"""timm models as teachers: tokens of a grid, logits, and a ViT's queries, keys and values."""

import pytest
import torch

from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.teachers.vision import VisionTaps, vision_create
from ml_core.errors import InputError
from ml_core.models.timm_shim import timm_import

IMAGES = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def vit(**options):
    return vision_create(
        "vit_tiny_patch16_224",
        side=4,
        in_chans=1,
        num_classes=3,
        img_size=64,
        depth=3,
        embed_dim=24,
        num_heads=2,
        **options,
    )


@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0", "convnext_atto"])
def test_a_cnn_shows_its_stages_on_one_grid(name):
    teacher = vision_create(name, side=4, in_chans=1, num_classes=3)
    shown = teacher(IMAGES)
    assert {tuple(layer.shape[:2]) for layer in shown.layers} == {(2, 16)}
    assert shown.logits.shape == (2, 3)
    assert torch.allclose(shown.logits, teacher.net(IMAGES), atol=1e-4)


def test_a_vit_shows_patches_and_the_queries_that_it_computes():
    teacher = vit(head_layers=(-1,))
    seen = []
    handle = teacher.net.blocks[2].attn.qkv.register_forward_hook(lambda _, inputs, output: seen.append(output))
    shown = teacher(IMAGES)
    handle.remove()
    assert [tuple(layer.shape) for layer in shown.layers] == [(2, 16, 24)] * 3
    # the model's own pass has the class token in front
    assert torch.allclose(shown.heads[0].k, seen[0][:, 1:, 24:48], atol=1e-5)
    assert shown.heads[0].name == "blocks.2"


def test_a_cnn_teaches_a_vit():
    student = vit(frozen=False)
    shown = student(IMAGES)
    wanted = vision_create("resnet10t", side=4, in_chans=1, num_classes=3)(IMAGES)
    dfad = DFAD.measured(DFADConfig(), [(shown, wanted)])
    dfad(shown, wanted, shown.logits.sum() * 0.0, 0.0).total.backward()
    assert float(student.net.blocks[0].attn.qkv.weight.grad.abs().sum()) > 0


def test_weights_are_given_and_strange_models_refused():
    one = vit()
    again = vit(tensors=one.net.state_dict())
    assert torch.equal(one(IMAGES).pooled, again(IMAGES).pooled)
    with pytest.raises(InputError, match="queries"):
        vision_create("resnet10t", side=4, in_chans=1, head_layers=(1,))
    with pytest.raises(InputError, match="first block"):
        vit(head_layers=(0,))
    with pytest.raises(InputError, match="intermediate"):
        VisionTaps(torch.nn.Linear(2, 2), side=2)
    assert timm_import() is not None
