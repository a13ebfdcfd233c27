"""Tiny text models with tokenizers, and tiny parquet files of labelled texts."""

import pyarrow as pa
from pyarrow import parquet

from ml_core.models.transformers_shim import transformers_import
from ml_core.seed import seed_all

WORDS = ("good", "bad", "film", "a", "the", "was", "is", "very", "not")


def text_checkpoint(folder, *, kind):
    """A tiny MPNet or BERT with a word-level tokenizer; their ids of the same words differ."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    first, last, pad = ("<s>", "</s>", "<pad>") if kind == "mpnet" else ("[CLS]", "[SEP]", "[PAD]")
    unknown = "[UNK]"
    special = [first, pad, last, unknown] if kind == "mpnet" else [pad, unknown, first, last]
    vocabulary = {word: index for index, word in enumerate([*special, *(WORDS if kind == "mpnet" else WORDS[::-1])])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B {last}",
        special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])],
    )
    transformers = transformers_import()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token=first, sep_token=last, pad_token=pad, unk_token=unknown
    )
    fast.save_pretrained(folder)
    sizes = {"hidden_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 32}
    made = {"mpnet": ("MPNetModel", "MPNetConfig"), "bert": ("BertModel", "BertConfig")}[kind]
    seed_all(0)
    config = getattr(transformers, made[1])(vocab_size=len(vocabulary) + 2, pad_token_id=vocabulary[pad], **sizes)
    getattr(transformers, made[0])(config).save_pretrained(folder)
    return folder


def text_table(folder, *, rows, pair=False, names=("no", "yes")):
    """FOLDER/{train,dev}.parquet with text (or text_a, text_b), label and label_name."""
    texts = [" ".join(WORDS[(row * step) % len(WORDS)] for step in range(1, 3 + row % 4)) for row in range(rows)]
    columns = {"text_a": texts, "text_b": texts[::-1]} if pair else {"text": texts}
    labels = [row % len(names) for row in range(rows)]
    folder.mkdir(parents=True, exist_ok=True)
    columns |= {"label": labels, "label_name": [names[label] for label in labels]}
    for part in ("train", "dev"):
        parquet.write_table(pa.table(columns), folder / f"{part}.parquet")
