"""The models and prompts that every benchmark uses: tiny, random, and never at a loss for words.

Needs torch and transformers alone, so that it runs in an environment that holds another TRL and no lab.

The models cannot emit the special tokens: all completions have the same length in every trainer, which is what makes
their times comparable. A constant coordinate of the residual stream does it, on which the output matrix puts a logit of
about -100 for those tokens. No trainer needs to know.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

VOCABULARY, PROMPT_LENGTH, NEW_TOKENS = 256, 16, 64
SPECIAL = {"pad": 0, "eos": 1, "unk": 2}


def tokenizer() -> PreTrainedTokenizerFast:
    """One word, one token; the chat template adds none, so a prompt has exactly PROMPT_LENGTH tokens."""
    words = {f"<{name}>": number for name, number in SPECIAL.items()}
    words |= {f"w{number}": number for number in range(len(SPECIAL), VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return fast


def config() -> LlamaConfig:
    """4 layers, 128 wide: 1.07 M parameters outside the tables."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=SPECIAL["eos"],
        pad_token_id=SPECIAL["pad"],
        num_labels=1,
    )


@torch.no_grad()
def policy(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config())
    model.model.embed_tokens.weight.normal_()
    model.model.embed_tokens.weight[:, 0] = 2.0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    model.lm_head.weight[:, 0] = 0.0
    model.lm_head.weight[list(SPECIAL.values()), 0] = -50.0
    return model


def prompts(count: int, seed: int = 0) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(SPECIAL), VOCABULARY, (count, PROMPT_LENGTH), generator=generator).tolist()
    return [" ".join(f"w{number}" for number in row) for row in rows]


def save(folder: Path) -> None:
    """``policy`` and ``reward/final`` (a classifier of the same size) under ``folder``, each with the tokenizer."""
    logging.disable_progress_bar()
    torch.manual_seed(1)
    for name, model in {"policy": policy(0), "reward/final": LlamaForSequenceClassification(config())}.items():
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    # The lab's reward models are shifted and scaled; this one is taken as it is.
    (folder / "reward" / "normalisation.json").write_text(json.dumps({"shift": 0.0, "scale": 1.0}), encoding="utf-8")


if __name__ == "__main__":
    save(Path(sys.argv[1]))
