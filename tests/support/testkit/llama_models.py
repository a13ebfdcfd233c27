"""Small Llama-shaped checkpoints of every kind that the decoder knows, as transformers writes them."""

import random
from pathlib import Path
from typing import Any

import torch

from ml_core.models.transformers_shim import transformers_import

VOCABULARY, POSITIONS = 97, 64
LENGTHS = (16, 32, POSITIONS)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 100.0,
}
SHAPES = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "one key head, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "biases, wide heads": {"attention_bias": True, "mlp_bias": True, "head_dim": 24},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}},
    "llama3 rope, grouped": {"rope_parameters": LLAMA3, "num_key_value_heads": 2},
}


def make(folder: Path, **changes: Any) -> Any:
    """A checkpoint at random whose numbers are large enough to disagree about the next token."""
    transformers = transformers_import()
    sizes = {"hidden_size": 64, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 4}
    given = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "num_key_value_heads": 4} | sizes | changes
    torch.manual_seed(3)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**given, eos_token_id=None, bos_token_id=None))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
        else:
            torch.nn.init.normal_(parameter, std=0.2)
    model.eval().save_pretrained(folder)
    return model


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random tokens, a row a length."""
    numbers = random.Random(seed)
    return [[numbers.randrange(VOCABULARY) for _ in range(length)] for length in lengths]
