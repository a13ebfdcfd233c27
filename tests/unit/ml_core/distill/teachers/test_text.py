"""Text models from a local folder: tiny random checkpoints of the shapes that are really used."""

import pytest
import torch

from ml_core.distill.dfad import DFAD, DFADConfig
from ml_core.distill.teachers.text import TextTaps, text_load
from ml_core.errors import InputError
from ml_core.models.transformers_shim import transformers_import

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32}
IDS = torch.tensor([[2, 7, 9, 11, 3], [2, 8, 3, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def made(kind):
    transformers = transformers_import()
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2)
        return transformers.LlamaForCausalLM(config)
    if kind == "electra":
        return transformers.ElectraModel(transformers.ElectraConfig(**SIZES, embedding_size=8))
    if kind == "mpnet":
        return transformers.MPNetModel(transformers.MPNetConfig(**SIZES))
    if kind == "bert-classifier":
        return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, num_labels=3))
    return transformers.BertModel(transformers.BertConfig(**SIZES))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for kind in ("bert", "bert-classifier", "electra", "mpnet", "llama"):
        made(kind).save_pretrained(root / kind)
    return root


@pytest.mark.parametrize(
    ("kind", "logits", "name", "widths"),
    [
        ("bert", None, "encoder.layer.2", (16, 16, 16)),
        ("bert-classifier", (2, 3), "bert.encoder.layer.2", (16, 16, 16)),
        ("mpnet", None, "encoder.layer.2", (16, 16, 16)),
        ("llama", (2, 5, 50), "model.layers.2", (16, 8, 8)),
    ],
)
def test_a_checkpoint_from_a_folder_shows_layers_heads_and_logits(folders, kind, logits, name, widths):
    shown = text_load(folders / kind, head_layers=(-1,))(IDS, MASK)
    assert [tuple(layer.shape) for layer in shown.layers] == [(2, 5, 16)] * 3
    assert shown.names[-1] == shown.heads[0].name == name
    assert tuple(x.shape[-1] for x in (shown.heads[0].q, shown.heads[0].k, shown.heads[0].v)) == widths
    assert (None if shown.logits is None else tuple(shown.logits.shape)) == logits
    assert torch.equal(shown.mask, MASK.bool())


@pytest.mark.parametrize("kind", ["bert", "mpnet", "llama"])
def test_the_taps_are_what_the_model_itself_projects(folders, kind):
    taps = text_load(folders / kind, head_layers=(1,))
    place = {"bert": "attention.self.query", "mpnet": "attention.attn.q", "llama": "self_attn.q_proj"}[kind]
    module = taps.model.get_submodule(f"{taps.names[1]}.{place}")
    seen = []
    handle = module.register_forward_hook(lambda _, inputs, output: seen.append(output))
    shown = taps(IDS, MASK)
    handle.remove()
    # first the model's own pass, then the tap's
    assert len(seen) == 2
    assert torch.allclose(shown.heads[0].q, seen[0], atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "electra", "mpnet", "llama"])
def test_layers_are_those_of_the_model_under_the_plain_mask(folders, kind):
    taps = text_load(folders / kind)
    shown = taps(IDS, MASK)
    wanted = taps.model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states[1:]
    for ours, own in zip(shown.layers, wanted, strict=True):
        assert torch.allclose(ours[MASK.bool()], own[MASK.bool()], atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("kind", ["bert", "electra", "mpnet"])
def test_a_pass_forward_and_back_is_one_cuda_graph(folders, kind):
    taps = text_load(folders / kind, frozen=False).to("cuda")
    ids, mask = IDS.to("cuda"), MASK.to("cuda")

    def step():
        taps.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            taps(ids, mask).pooled.float().square().sum().backward()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    weight = next(taps.parameters())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    replayed = weight.grad.clone()
    step()
    assert replayed.abs().max() > 0.0
    assert torch.allclose(replayed, weight.grad, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_padding_at_the_end_does_not_change_the_pooled_embedding(folders, kind):
    taps = text_load(folders / kind)
    both = taps(IDS, MASK).pooled[1]
    alone = taps(IDS[1:, :3], MASK[1:, :3]).pooled[0]
    assert torch.allclose(both, alone, atol=1e-5)


def test_pooling_is_the_mean_the_first_or_the_last_real_token(folders):
    shown = {pool: text_load(folders / "bert", pool=pool)(IDS, MASK) for pool in ("mean", "first", "last")}
    last = shown["mean"].layers[-1]
    assert torch.allclose(shown["mean"].pooled[1], last[1, :3].mean(0), atol=1e-6)
    assert torch.equal(shown["first"].pooled, last[:, 0])
    assert torch.allclose(shown["last"].pooled, torch.stack([last[0, 4], last[1, 2]]))


def test_a_llama_teaches_a_bert_by_features_and_relations(folders):
    teacher = text_load(folders / "llama", head_layers=(-1,))
    student = TextTaps(made("bert"), head_layers=(-1,))
    with torch.no_grad():
        wanted = teacher(IDS, MASK)
    shown = student(IDS, MASK)
    config = DFADConfig(levels=("token", "layer", "global", "heads"), relation_heads=4, kl_share=0.0)
    dfad = DFAD.measured(config, [(shown, wanted)])
    dfad(shown, wanted, shown.pooled.sum() * 0.0, 0.0).total.backward()
    assert float(student.model.get_submodule("encoder.layer.0.attention.self.query").weight.grad.abs().sum()) > 0
    assert not any(p.requires_grad for p in teacher.parameters())


def test_folders_without_a_model_and_unknown_layers_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        text_load(tmp_path)
    with pytest.raises(InputError, match="stack of layers"):
        TextTaps(torch.nn.Linear(2, 2))
    model = made("bert")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError):
        text_load(tmp_path)
