"""Loading, templates, token log-probabilities and the KL meter, each against an independent calculation."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput

from lab import models
from lab.models import (
    ModelSize,
    completion_logprobs,
    decode_completions,
    encode_completion,
    encode_prompt,
    end_token_ids,
    load_classifier,
    load_policy,
    new_policy,
    parameter_count,
    pick_device,
    pick_dtype,
    sequence_statistics,
)
from lab.stages.convert import copy_checkpoint
from lab.world.vocabulary import tokenizer as world_tokenizer

SIZE = ModelSize(hidden=16, layers=2, heads=2, intermediate=24)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return world_tokenizer()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("models") / "final"
    new_policy(SIZE, tokenizer, seed=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny(seed: int, vocabulary: int = 3) -> LlamaForCausalLM:
    """A policy over very few tokens, with weights large enough that its distributions are far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=1.0,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).double().eval()


class Table(torch.nn.Module):
    """The next token's distribution depends on the last token alone: logits[last]. All sums can be made by hand."""

    def __init__(self, probabilities: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.logits = torch.log(torch.tensor(probabilities))
        self.device = torch.device("cpu")
        self.config = LlamaConfig(vocab_size=len(probabilities))

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> CausalLMOutput:
        return CausalLMOutput(logits=self.logits[input_ids])


HALF = Table([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]])
CERTAIN = Table([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])


# ---------------------------------------------------------------- log-probabilities and KL


def test_logprobs_of_a_table_by_hand() -> None:
    (found,) = completion_logprobs(HALF, [[0]], [[0, 1, 1]])  # type: ignore[arg-type]
    assert found.tolist() == pytest.approx([math.log(0.5), math.log(0.25), math.log(0.5)], rel=1e-6)


def test_statistics_of_a_table_by_hand() -> None:
    (found,) = sequence_statistics(CERTAIN, HALF, [[0]], [[1, 2, 0]])  # type: ignore[arg-type]
    # After 0: (1/2, 1/2, 0) against (1/2, 1/4, 1/4); after 1: (0, 1/2, 1/2) against (1/4, 1/2, 1/4); after 2: certain.
    assert found.kl_nats == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2) + math.log(4), rel=1e-6)
    assert found.entropy_nats == pytest.approx((math.log(2) + math.log(2) + 0.0) / 3, rel=1e-6)
    assert found.logprob == pytest.approx(2 * math.log(0.5), rel=1e-6)
    assert found.reference_logprob == pytest.approx(3 * math.log(0.25), rel=1e-6)


def test_kl_is_infinite_where_the_reference_cannot_follow() -> None:
    (found,) = sequence_statistics(HALF, CERTAIN, [[2]], [[0]])  # type: ignore[arg-type]
    assert found.kl_nats == math.inf


def brute_force_logprobs(model: LlamaForCausalLM, prompt: list[int], completion: Sequence[int]) -> list[float]:
    """One forward pass a token, nothing padded, nothing batched."""
    found = []
    for index, token in enumerate(completion):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *completion[:index]]])).logits[0, -1]
        found.append(float(torch.log_softmax(logits, -1)[token]))
    return found


def test_expected_kl_equals_enumeration() -> None:
    """Vocabulary {0, 1, end}: all completions of at most 3 tokens. sum_y p(y) log(p(y) / q(y)) is the definition; the
    meter's mean over y ~ p must equal it, though it never looks at log p(y) / q(y)."""
    policy, reference, end, prompt = tiny(0), tiny(1), 2, [0, 1]
    completions = [
        list(tokens)
        for length in (1, 2, 3)
        for tokens in itertools.product(range(3), repeat=length)
        if end not in tokens[:-1] and (tokens[-1] == end or length == 3)
    ]
    log_p = [sum(brute_force_logprobs(policy, prompt, tokens)) for tokens in completions]
    log_q = [sum(brute_force_logprobs(reference, prompt, tokens)) for tokens in completions]
    assert sum(map(math.exp, log_p)) == pytest.approx(1.0, abs=1e-9)
    definition = sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))
    found = sequence_statistics(policy, reference, [prompt] * len(completions), completions, batch_size=4)
    metered = sum(math.exp(p) * one.kl_nats for p, one in zip(log_p, found, strict=True))
    assert definition > 0.1
    assert metered == pytest.approx(definition, rel=1e-9)
    assert [one.logprob for one in found] == pytest.approx(log_p, rel=1e-9)
    assert [one.reference_logprob for one in found] == pytest.approx(log_q, rel=1e-9)


def test_batching_padding_and_chunking_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, reference = tiny(2, 11), tiny(3, 11)
    prompts = [[1], [2, 3, 4, 5], [6, 7], [8, 9, 10, 1, 2, 3]]
    completions = [[3, 4, 5, 6, 7], [1], [], [10, 9]]
    together = sequence_statistics(policy, reference, prompts, completions)
    logprobs = completion_logprobs(policy, prompts, completions)
    for prompt, completion, found, row in zip(prompts, completions, together, logprobs, strict=True):
        (alone,) = sequence_statistics(policy, reference, [prompt], [completion])
        assert found.kl_nats == pytest.approx(alone.kl_nats, rel=1e-9)
        assert found.entropy_nats == pytest.approx(alone.entropy_nats, rel=1e-9)
        assert row.tolist() == pytest.approx(brute_force_logprobs(policy, prompt, completion), abs=1e-6)
    assert together[2].kl_nats == 0.0
    assert len(logprobs[2]) == 0
    monkeypatch.setattr(models, "LOGIT_BUDGET", 20)  # one row a batch, one position at a time
    for small, large in zip(sequence_statistics(policy, reference, prompts, completions), together, strict=True):
        assert small.kl_nats == pytest.approx(large.kl_nats, rel=1e-9)


def test_kl_to_itself_is_exactly_zero(checkpoint: Path) -> None:
    first, _ = load_policy(checkpoint)
    second, _ = load_policy(checkpoint)
    prompts, completions = [[5, 6, 7], [8, 9]], [[4, 5, 6], [7, 8, 9, 10]]
    for reference in (first, second):
        assert [one.kl_nats for one in sequence_statistics(first, reference, prompts, completions)] == [0.0, 0.0]


def test_models_whose_positions_are_learned_agree_too() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=7, n_embd=8, n_layer=1, n_head=2, n_positions=16)).double().eval()
    prompts, completions = [[1, 2, 3], [4]], [[5, 6], [1, 2, 3, 4]]
    for row, prompt, completion in zip(
        completion_logprobs(model, prompts, completions), prompts, completions, strict=True
    ):
        assert row.tolist() == pytest.approx(brute_force_logprobs(model, prompt, completion), abs=1e-6)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        completion_logprobs(tiny(0), [[1], []], [[1], [1]])


# ---------------------------------------------------------------- templates


def test_prompt_and_completion_make_the_rendered_conversation(tokenizer: PreTrainedTokenizerFast) -> None:
    question, reply = " ".join(tokenizer.convert_ids_to_tokens([20, 21, 22])), tokenizer.convert_ids_to_tokens(30)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    rendered = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False))["input_ids"]
    prompt = encode_prompt(tokenizer, question)
    assert prompt + encode_completion(tokenizer, reply) == rendered
    assert prompt == rendered[: len(prompt)]
    assert encode_completion(tokenizer, reply, end=False) == rendered[len(prompt) : -1]
    assert decode_completions(tokenizer, [rendered[len(prompt) :]]) == [reply]
    assert encode_completion(tokenizer, "") == [tokenizer.eos_token_id]


def test_no_chat_template_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = world_tokenizer()
    bare.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        encode_prompt(bare, "hello")


def test_all_tokens_that_end_a_completion(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_policy(SIZE, tokenizer, seed=1)
    assert end_token_ids(model, tokenizer) == [tokenizer.eos_token_id]
    model.generation_config.eos_token_id = [7, tokenizer.eos_token_id]
    assert end_token_ids(model, tokenizer) == [tokenizer.eos_token_id, 7]


# ---------------------------------------------------------------- checkpoints


def test_a_policy_survives_the_disk(checkpoint: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model, loaded_tokenizer = load_policy(checkpoint)
    assert not model.training
    assert model.config.use_cache
    assert encode_prompt(loaded_tokenizer, "x") == encode_prompt(tokenizer, "x")
    for (name, weight), other in zip(
        new_policy(SIZE, tokenizer, seed=1).named_parameters(), model.parameters(), strict=True
    ):
        assert torch.equal(weight, other), name


def test_weights_come_from_the_seed_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = new_policy(SIZE, tokenizer, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(4)
    two, other = new_policy(SIZE, tokenizer, seed=5), new_policy(SIZE, tokenizer, seed=6)
    assert torch.equal(one.lm_head.weight, two.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_parameters_by_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_policy(SIZE, tokenizer, seed=1)
    layer = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16
    assert parameter_count(model) == 2 * layer + 16
    assert parameter_count(model, embeddings=True) == 2 * layer + 16 + 16 * len(tokenizer)


def broken(checkpoint: Path, folder: Path, remove: str = "") -> Path:
    shutil.copytree(checkpoint, folder / "final")
    for path in (folder / "final").glob(remove or "no such file"):
        path.unlink()
    return folder / "final"


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("config.json", "config.json is missing"),
        ("model.safetensors", "model.safetensors is missing"),
        ("tokenizer*", "tokenizer.json is missing"),
    ],
)
def test_incomplete_checkpoints_name_path_and_file(checkpoint: Path, tmp_path: Path, remove: str, message: str) -> None:
    path = broken(checkpoint, tmp_path, remove)
    with pytest.raises(ValueError, match=message) as caught:
        load_policy(path)
    assert str(path) in str(caught.value)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such checkpoint folder"):
        load_policy(tmp_path / "nowhere")


def test_pickled_weights_are_not_loaded(checkpoint: Path, tmp_path: Path) -> None:
    path = broken(checkpoint, tmp_path, "model.safetensors")
    (path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match=r"found pytorch_model.bin; convert to safetensors"):
        load_policy(path)


def test_tokens_without_an_embedding_name_the_file(checkpoint: Path, tmp_path: Path) -> None:
    path = broken(checkpoint, tmp_path)
    larger = world_tokenizer()
    larger.add_tokens(["surplus"])
    larger.save_pretrained(path)
    for load in (load_policy, lambda folder: copy_checkpoint(folder, tmp_path / "copy")):
        with pytest.raises(ValueError, match=r"tokenizer.json: token 'surplus' has id"):
            load(path)


def test_a_cut_weight_file_is_named(checkpoint: Path, tmp_path: Path) -> None:
    path = broken(checkpoint, tmp_path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model.safetensors: not a whole safetensors file"):
        copy_checkpoint(path, tmp_path / "copy")


def test_a_causal_checkpoint_is_no_reward_model_until_it_has_a_head(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not a trained reward model|num_labels"):
        load_classifier(checkpoint)
    one, tokenizer = load_classifier(checkpoint, new_head_seed=4)
    two, _ = load_classifier(checkpoint, new_head_seed=4)
    assert one.score.weight.shape == (1, SIZE.hidden)
    assert torch.equal(one.score.weight, two.score.weight)
    assert one.config.pad_token_id == tokenizer.pad_token_id
    one.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    again, _ = load_classifier(tmp_path / "rm")
    assert torch.equal(again.score.weight, one.score.weight)


def test_devices_and_dtypes() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_dtype("auto", "cpu") is torch.float32
    assert pick_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ValueError, match="device: expected auto, cpu or cuda"):
        pick_device("gpu")
    with pytest.raises(ValueError, match="dtype: expected auto or one of"):
        pick_dtype("fp8")


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(checkpoint: Path) -> None:
    on_cpu, _ = load_policy(checkpoint)
    on_cuda, _ = load_policy(checkpoint, "cuda")
    prompts, completions = [[5, 6, 7], [8, 9]], [[4, 5, 6], [7, 8, 9, 10]]
    for one, other in zip(
        completion_logprobs(on_cpu, prompts, completions),
        completion_logprobs(on_cuda, prompts, completions),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-4)
