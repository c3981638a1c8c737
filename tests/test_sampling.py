"""The sampler: the right distribution, the right policy, and a sample that depends on its own seed alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lab import sampling
from lab.models import completion_logprobs, pick_device
from lab.sampling import Sample, sample, uniforms

PAD, END = 0, 2
PROMPTS = [[5, 6, 7], [8, 9], [3, 4, 5, 6, 7, 8], [5, 6, 7], [10]] * 4


def llama(groups: int = 4, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=23,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=groups,
        initializer_range=0.4,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # norms that are not all 1, or a forgotten weight would go unseen
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    return model


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=23, n_embd=32, n_layer=2, n_head=4, n_positions=64, eos_token_id=END, pad_token_id=PAD
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(params=["llama by hand", "grouped llama by hand", "llama", "gpt2"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[PreTrainedModel]:
    if request.param == "gpt2":
        yield gpt2()
        return
    chosen = llama(groups=2 if "grouped" in request.param else 4)
    if "by hand" not in request.param:
        monkeypatch.setattr(sampling._SmallLlamaDecoder, "LARGEST_MODEL", 0)
    assert sampling._SmallLlamaDecoder.fits(chosen, 20, 40) is ("by hand" in request.param)
    yield chosen


def draw(model: PreTrainedModel, prompts: list[list[int]] | None = None, **changes: object) -> list[Sample]:
    prompts = PROMPTS if prompts is None else prompts
    arguments: dict = {"seeds": range(len(prompts)), "max_new_tokens": 12, "eos_token_id": END, "pad_token_id": PAD}
    return sample(model, prompts, **{**arguments, **changes})


def test_first_tokens_follow_the_softmax(model: PreTrainedModel) -> None:
    prompt, count = [5, 6, 7], 4000
    drawn = draw(model, [prompt] * count, max_new_tokens=1, batch_size=2000)
    with torch.no_grad():
        expected = torch.softmax(model(torch.tensor([prompt])).logits[0, -1].double(), -1).numpy() * count
    found = np.bincount([one.ids[0] for one in drawn], minlength=23)
    common = expected >= 5
    found = np.append(found[common], found[~common].sum())
    expected = np.append(expected[common], max(expected[~common].sum(), 1e-9))
    assert stats.chisquare(found, expected * count / expected.sum()).pvalue > 1e-3


def test_temperature_sharpens(model: PreTrainedModel) -> None:
    prompt, count = [8, 9], 2000
    drawn = draw(model, [prompt] * count, max_new_tokens=1, temperature=0.5, batch_size=2000)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1] / 0.5, -1)
    best = int(logprobs.argmax())
    share = np.mean([one.ids[0] == best for one in drawn])
    chance = float(logprobs[best].exp())
    assert abs(share - chance) < 4 * (chance * (1 - chance) / count) ** 0.5
    for one in drawn[:20]:
        assert one.logprobs[0] == pytest.approx(float(logprobs[one.ids[0]]), abs=1e-4)


def test_tokens_are_the_inverse_cdf_of_the_row_s_uniforms(model: PreTrainedModel) -> None:
    """Step by step without cache, padding or batch, from the documented definition."""
    (found,) = draw(model, [[3, 4, 5]], seeds=[77], max_new_tokens=6, eos_token_id=[])
    context = [3, 4, 5]
    for draw_number in uniforms(77, 6):
        with torch.no_grad():
            cdf = torch.softmax(model(torch.tensor([context])).logits[0, -1].double(), -1).cumsum(-1).numpy()
        context.append(int(np.searchsorted(cdf, draw_number)))
    assert found.ids == context[3:]


def test_greedy_equals_generate(model: PreTrainedModel) -> None:
    for prompt in ([5, 6, 7], [3, 4, 5, 6, 7, 8]):
        ids = torch.tensor([prompt])
        expected = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=PAD
        )[0, len(prompt) :].tolist()
        drawn = draw(model, [[9], prompt, [4, 4, 4, 4, 4, 4, 4]], temperature=0)
        assert drawn[1].ids == expected


def test_logprobs_are_those_of_the_one_scorer(model: PreTrainedModel) -> None:
    for temperature in (1.0, 0.7):
        drawn = draw(model, temperature=temperature)
        scored = completion_logprobs(model, PROMPTS, [one.ids for one in drawn], temperature=temperature)
        for one, row in zip(drawn, scored, strict=True):
            assert one.logprobs == pytest.approx(row.tolist(), abs=1e-4)
    greedy = draw(model, temperature=0)
    for one, row in zip(greedy, completion_logprobs(model, PROMPTS, [one.ids for one in greedy]), strict=True):
        assert one.logprobs == pytest.approx(row.tolist(), abs=1e-4)


def test_a_sample_does_not_depend_on_its_neighbours(model: PreTrainedModel) -> None:
    together = [one.ids for one in draw(model)]
    assert len({tuple(ids) for ids in together}) > 10
    assert [one.ids for one in draw(model, batch_size=1)] == together
    assert [one.ids for one in draw(model, batch_size=7)] == together
    backwards = draw(model, PROMPTS[::-1], seeds=range(len(PROMPTS))[::-1])
    assert [one.ids for one in backwards[::-1]] == together


def test_a_second_run_gives_the_same_bytes(model: PreTrainedModel) -> None:
    assert draw(model) == draw(model)


def test_a_longer_budget_only_appends(model: PreTrainedModel) -> None:
    for short, long in zip(draw(model, max_new_tokens=4), draw(model, max_new_tokens=12), strict=True):
        assert long.ids[: len(short.ids)] == short.ids
        assert short.truncated is (len(long.ids) > 4 or long.ids[-1] != END)


def test_ends_and_truncation(model: PreTrainedModel) -> None:
    drawn = draw(model, eos_token_id=[END, 7, 11], max_new_tokens=8)
    assert {one.truncated for one in drawn} == {True, False}
    for one in drawn:
        assert not set(one.ids[:-1]) & {END, 7, 11}
        assert one.truncated is (one.ids[-1] not in {END, 7, 11})
        assert len(one.ids) == len(one.logprobs)
        assert len(one.ids) == 8 or not one.truncated


def test_training_mode_is_put_back_and_dropout_is_off() -> None:
    model = gpt2()
    expected = draw(model)
    model.train()
    assert draw(model) == expected
    assert model.training


def test_a_frozen_policy_keeps_no_graph(model: PreTrainedModel) -> None:
    with torch.enable_grad():
        draw(model)
    assert all(weight.grad is None for weight in model.parameters())


def test_an_adapter_takes_the_general_way() -> None:
    """A projection that is more than a matrix product must not be read as one."""

    class Adapted(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) * 1.5

    model = llama()
    old = model.model.layers[0].self_attn.q_proj
    model.model.layers[0].self_attn.q_proj = Adapted(32, 32, bias=False)
    model.model.layers[0].self_attn.q_proj.weight = old.weight
    assert not sampling._SmallLlamaDecoder.fits(model, 20, 40)
    drawn = draw(model)
    for one, row in zip(drawn, completion_logprobs(model, PROMPTS, [one.ids for one in drawn]), strict=True):
        assert one.logprobs == pytest.approx(row.tolist(), abs=1e-4)


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for number, expected in ((0.0, 1), (0.5 - 1e-9, 1), (0.5, 3), (1 - 2**-53, 3)):
        chosen, logprob = sampling._choose(logits, torch.tensor([number], dtype=torch.float64), 1.0)
        assert int(chosen) == expected
        assert float(logprob) == pytest.approx(np.log(0.5), rel=1e-6)


def test_diverged_policies_and_bad_calls_are_refused() -> None:
    model = llama()
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        draw(model, [[1], []])
    with pytest.raises(ValueError, match="seeds: expected one for each of the 20 prompts"):
        draw(model, seeds=[1])
    with pytest.raises(ValueError, match="temperature"):
        draw(model, temperature=-1.0)
    assert draw(model, [], seeds=[]) == []
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="not finite"):
            draw(model, temperature=temperature)


@pytest.mark.gpu
def test_cuda_draws_what_the_cpu_draws() -> None:
    model = llama()
    expected = [one.ids for one in draw(model)]
    found = [one.ids for one in draw(model.to(pick_device("cuda")))]
    assert np.mean([one == other for one, other in zip(expected, found, strict=True)]) > 0.9
