"""The text teacher and its students, all reading the teacher's token ids, with a linear head on the mean token."""

import json
import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ml_core.distill.features import Features
from ml_core.distill.teachers.text import TextTaps, text_load
from ml_core.errors import InputError
from ml_core.models.transformers_shim import transformers_import

# layers, width, heads, FFN, width of the embedding
_SIZES = {
    "bert6x384": (6, 384, 12, 1_536, 384),  # 22.7 M
    "factor4x768": (4, 768, 12, 1_280, 128),  # 21.4 M
    "layers4x768": (4, 768, 12, 3_072, 768),  # 52 M, the teacher's own layers
    "factor4x256": (4, 256, 4, 1_024, 64),  # 5.2 M, 21 times smaller than MPNet-base
}
STUDENTS = tuple(_SIZES)
_COPIED = "layers4x768"
_PRETRAINED = "bert6x384"
_MOST_HEADS = 12


@dataclass(frozen=True, kw_only=True)
class Starts:
    """Where weights come from: the teacher's folder, the 6 x 384 student's, and that of general distillation.

    In `general` lie NAME.safetensors, whose metadata "says" how they were made.
    """

    teacher: Path
    student: Path | None = None
    general: Path | None = None

    def file(self, name: str) -> Path | None:
        """Where general distillation leaves this student; None where no such folder is named."""
        return None if self.general is None else self.general / f"{name}.safetensors"


class TextClassifier(nn.Module):
    """A transformers encoder and a linear head. `table`: from the batch's ids to the encoder's own."""

    table: Tensor | None

    def __init__(self, taps: TextTaps, *, width: int, classes: int, table: Tensor | None = None) -> None:
        super().__init__()
        self.taps, self.head = taps, nn.Linear(width, classes)
        self.register_buffer("table", table, persistent=False)

    def forward(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Features:
        """Features of b texts, logits (b c) included."""
        shown = self.taps(ids if self.table is None else self.table[ids], mask)
        return replace(shown, logits=self.head(shown.pooled))


def teacher(folder: Path, *, classes: int) -> TextClassifier:
    """The pretrained encoder of the folder, to be fine-tuned."""
    taps = text_load(folder, head_layers=(-1,), pool="mean", frozen=False)
    return TextClassifier(taps, width=taps.model.config.hidden_size, classes=classes)


def student(name: str, *, starts: Starts, classes: int) -> TextClassifier:
    """One of STUDENTS from its start. InputError for other names, and where `general` lacks what it should hold."""
    if name not in _SIZES:
        raise InputError(f"student: unknown {name!r}; there are {', '.join(STUDENTS)}")
    if name == _COPIED:
        body = _shallow(starts.teacher, layers=_SIZES[name][0])
        return TextClassifier(_taps(body), width=body.config.hidden_size, classes=classes)
    if name == _PRETRAINED and starts.student is not None:
        taps = text_load(starts.student, head_layers=(-1,), pool="mean", frozen=False)
        table = torch.tensor(_id_table(starts.teacher, starts.student))
        return TextClassifier(taps, width=taps.model.config.hidden_size, classes=classes, table=table)
    layers, width, heads, ffn, embedding = _SIZES[name]
    config = _config(starts.teacher)
    transformers = transformers_import()
    # ELECTRA's encoder is BERT's with a projection where the embedding is narrower than the layers
    made = transformers.ElectraConfig(
        vocab_size=config["vocab_size"],
        embedding_size=embedding,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        pad_token_id=config.get("pad_token_id", 0),
    )
    model = TextClassifier(_taps(transformers.ElectraModel(made)), width=width, classes=classes)
    if (path := starts.file(name)) is not None:
        if not path.exists():
            raise InputError(f"general: {path} does not exist; a recipe text_general_* makes it")
        model.taps.load_state_dict(load_file(path))
    return model


def start(name: str, *, starts: Starts) -> str:
    """The weights that the student starts from, in words."""
    if name == _COPIED:
        return "teacher's layers, evenly spread, before fine-tuning"
    if name == _PRETRAINED and starts.student is not None:
        return f"pretrained ({starts.student.name})"
    path = starts.file(name)
    if path is None:
        return "random"
    if not path.exists():  # a folder may lack the students that nobody asks for; student() refuses them
        return f"general distillation, not there yet ({path.name})"
    with safe_open(path, framework="pt") as stream:
        return str(stream.metadata()["says"])


def rate(name: str, *, starts: Starts) -> float:
    """Learning rate: weights that know something move less."""
    return 5e-4 if start(name, starts=starts) == "random" else 1e-4


def relation_heads(teacher: Path, name: str) -> int:
    """The most MiniLM relation heads, at most 12, that divide both widths."""
    width = _config(teacher)["hidden_size"] if name == _COPIED else _SIZES[name][1]
    both = math.gcd(width, _config(teacher)["hidden_size"])
    return max(count for count in range(1, _MOST_HEADS + 1) if both % count == 0)


def model_type(folder: Path) -> str:
    """What config.json calls the family of the model."""
    return str(_config(folder).get("model_type", folder.name))


def _taps(body: nn.Module) -> TextTaps:
    return TextTaps(body, head_layers=(-1,), pool="mean")


def _shallow(folder: Path, *, layers: int) -> Any:
    """The pretrained encoder cut to `layers` of its layers, the last one always among them."""
    body: Any = text_load(folder, frozen=False).model
    stack: list[nn.Module] = list(body.encoder.layer)
    deep = len(stack)
    kept = [max(0, round((index + 1) * deep / layers) - 1) for index in range(min(layers, deep))]
    body.encoder.layer = nn.ModuleList([stack[index] for index in kept])
    body.config.num_hidden_layers = len(kept)
    return body


@cache
def _id_table(teacher: Path, student: Path) -> list[int]:
    """For every id of the teacher the student's id of the same word, special tokens by their office."""
    auto = transformers_import().AutoTokenizer
    mine, theirs = (auto.from_pretrained(folder, local_files_only=True) for folder in (student, teacher))
    own, unknown = mine.get_vocab(), mine.unk_token_id
    table = [unknown] * (max(theirs.get_vocab().values()) + 1)
    for word, index in theirs.get_vocab().items():
        table[index] = own.get(word, unknown)
    for office in ("cls", "sep", "pad", "mask", "unk"):
        there, here = getattr(theirs, f"{office}_token_id"), getattr(mine, f"{office}_token_id")
        if there is not None and here is not None:
            table[there] = here
    return table


@cache
def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        raise InputError(f"{folder}: no config.json")
    return json.loads(path.read_text())
