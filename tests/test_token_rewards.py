"""Outcome and process rewards: the loss and the aggregates by hand, positions in any tokenizer, and that they learn."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lab.config import OutcomeSource, ProcessSource, TokenRewardConfig, build
from lab.data.jsonl import write_records, write_samples
from lab.models import ModelSize, encode_completion, encode_prompts, load_policy, new_policy
from lab.records import Completion, Pair, Prompt
from lab.rewards.agreement import agreement, auc
from lab.rewards.source import DetailedSource, read_normalisation
from lab.rewards.token_scores import (
    OutcomeReward,
    ProcessReward,
    load_token_classifier,
    outcome_score,
    process_score,
    spans_of,
    step_positions,
    token_logits,
)
from lab.stages import token_rewards
from lab.stages.token_rewards import (
    UNLABELLED,
    Labelled,
    collate,
    outcome_labels,
    rollout_labels,
    token_loss,
    token_rows,
    world_labels,
)
from lab.store import Context
from lab.world.vocabulary import tokenizer

TIES = Prompt("name a color", "ties", 1, {"allowed": ["red"], "excluded": [], "category": "color"})


def total(a: int, b: int) -> Prompt:
    steps = [[str(a), "+", str(b), str(a + b)]]
    return Prompt(f"compute {a} + {b}", "math", 1, {"verifier": "world_answer", "answer": str(a + b), "steps": steps})


SUM = total(3, 4)


def said(prompt: Prompt, text: str, truncated: bool = False, sample: int = 0) -> Completion:
    return Completion(prompt.id, sample, text, len(text.split()) + (not truncated), truncated)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    words = tokenizer()
    new_policy(ModelSize(32, 2, 2, 64), words, seed=1).save_pretrained(folder / "final")
    words.save_pretrained(folder / "final")
    return folder


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums whose right answers say ``sure`` at the end of no step and wrong ones are off by one: easy to learn."""
    folder, rng = tmp_path_factory.mktemp("pool"), random.Random(0)
    samples: list[tuple[Prompt, Completion]] = []
    pairs = []
    for number in range(240):
        prompt = total(rng.randint(1, 3), rng.randint(1, 2))
        answer = int(prompt.gold["answer"])
        work = " ".join(prompt.text.split()[1:])
        right = f"{work} = {answer} ; answer {answer}"
        wrong = f"{work} = {answer + 1} ; answer {answer + 1}"
        if number < 200:
            text = right if number % 2 else wrong
            samples.append((prompt, said(prompt, text, sample=number)))
        else:
            pairs.append(Pair(prompt, right, wrong, "gold"))
    samples.append((TIES, said(TIES, "red")))
    write_samples(folder / "samples.jsonl", samples)
    write_records(folder / "held_out.jsonl", [*pairs, Pair(TIES, "red", "blue", "gold")])
    write_records(folder / "reference.jsonl", [Pair(p, c.text, c.text, "reference") for p, c in samples[:40]])
    return folder


def train(policy: Path, pool: Path, folder: Path, kind: str, **settings: Any) -> tuple[Any, Path]:
    plain = {"epochs": 6, "batch": 20, "learning_rate": 1e-2, "warmup_steps": 2, "labels": "world", "rollouts": 2,
             "schedule": "cosine", "weight_decay": 0.0, "max_length": 96, "micro_batch": 0, "seed": 0}  # fmt: skip
    build(TokenRewardConfig, plain | settings, "training")
    out = folder / "out"
    out.mkdir(parents=True)
    context = Context("key", "key", folder / "scratch", resources={"device": "cpu"})
    config = {"kind": kind, "training": plain | settings, "seed": 0}
    return token_rewards.run(config, {"policy": policy, "pairs": pool}, out, context), out


@pytest.fixture(scope="module")
def outcome(policy: Path, pool: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    return train(policy, pool, tmp_path_factory.mktemp("outcome"), "outcome")


@pytest.fixture(scope="module")
def process(policy: Path, pool: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    return train(policy, pool, tmp_path_factory.mktemp("process"), "process")


# ---------------------------------------------------------------- the loss


def test_the_loss_by_hand() -> None:
    """Odds 3 : 1 for a right token cost log(4/3), for a wrong one log 4; a half-right one the mean of the two."""
    logits = torch.tensor([[math.log(3), math.log(3), 9.0], [math.log(3), -7.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0, UNLABELLED], [0.5, UNLABELLED, UNLABELLED]])
    expected = [math.log(4 / 3), math.log(4), (math.log(4 / 3) + math.log(4)) / 2]
    assert token_loss(logits, targets).item() == pytest.approx(sum(expected) / 3)
    assert token_loss(logits, targets, 6).item() == pytest.approx(sum(expected) / 6)
    flipped = logits * torch.tensor([[-1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])  # one token's sign
    assert token_loss(flipped, targets).item() == pytest.approx((2 * math.log(4) + expected[2]) / 3)


def test_only_labelled_tokens_are_pushed_and_each_to_its_own_side() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    token_loss(logits, torch.tensor([[1.0, 0.0, UNLABELLED]])).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-0.25, 0.25, 0.0]]


# ---------------------------------------------------------------- labels


def test_every_completion_token_carries_the_outcome() -> None:
    words = tokenizer()
    labelled, spent = outcome_labels([(SUM, said(SUM, "answer 7")), (SUM, said(SUM, "answer 8", truncated=True))])
    rows = token_rows(words, "outcome", labelled)
    asked = len(encode_prompts(words, [SUM.text])[0])
    assert rows[0]["labels"] == [UNLABELLED] * asked + [1.0] * 3  # answer, 7, end
    assert rows[1]["labels"] == [UNLABELLED] * asked + [0.0] * 2
    assert [len(row["labels"]) for row in rows] == [len(row["input_ids"]) for row in rows]
    assert spent.verifier_calls == 2
    assert spent.step_labels == 0


def test_steps_carry_their_labels_where_they_end() -> None:
    words = tokenizer()
    labelled, spent = world_labels([(SUM, said(SUM, "3 + 4 = 7 ; answer 8 thanks")), (SUM, said(SUM, ""))])
    rows = token_rows(words, "process", labelled)
    asked = len(encode_prompts(words, [SUM.text])[0])
    none = UNLABELLED
    assert rows[0]["labels"] == [none] * asked + [none] * 4 + [1.0] + [none] * 4 + [0.0]  # at 7, and at the end
    assert rows[1]["labels"] == [none] * asked + [0.0]
    assert (spent.step_labels, spent.verifier_calls) == (3, 0)


def test_an_empty_unfinished_completion_is_judged_at_its_prompt() -> None:
    words = tokenizer()
    nothing = said(SUM, "", truncated=True)
    for kind in ("outcome", "process"):
        (row,) = token_rows(words, kind, [Labelled(SUM, nothing, (0.0,))])
        assert row["input_ids"] == encode_prompts(words, [SUM.text])[0]
        assert row["labels"] == [UNLABELLED] * (len(row["input_ids"]) - 1) + [0.0]


def test_unknown_verdicts_are_not_wrong() -> None:
    (row,) = token_rows(tokenizer(), "outcome", [Labelled(SUM, said(SUM, "answer 7"), (float("nan"),))])
    assert set(row["labels"]) == {UNLABELLED}


def test_rollouts_label_steps_by_the_share_that_ends_right(policy: Path) -> None:
    """A policy that always goes on with the same word, so that every rollout is known."""
    model, words = load_policy(policy / "final")
    with torch.no_grad():  # every hidden state is the same, and only ";" has an output row
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        output = torch.zeros_like(model.lm_head.weight)
        output[words.convert_tokens_to_ids(";")] = 10.0
        model.lm_head.weight = torch.nn.Parameter(output)
    samples = [
        (SUM, said(SUM, "answer 7 ; answer 8")),  # from the first step on only ";": right, as it stands
        (SUM, said(SUM, "3 + 4 = 7 ; answer 7")),  # without its answer it cannot be read
        (SUM, said(SUM, "answer 7")),
    ]
    labelled, spent = rollout_labels(model, words, samples, rollouts=3, seed=0)
    assert [one.labels for one in labelled] == [(1.0, 0.0), (0.0, 1.0), (1.0,)]
    assert spent.verifier_calls == 2 * 3 + 3
    assert spent.generated_tokens == 2 * 3 * max(one.length for _, one in samples)
    assert spent.sampling_flops > 0
    assert spent.step_labels == 0


def test_rollouts_are_shared_by_completions_that_begin_alike_and_do_not_depend_on_the_rest(policy: Path) -> None:
    model, words = load_policy(policy / "final")
    one, two = (SUM, said(SUM, "3 + 4 = 7 ; answer 7")), (SUM, said(SUM, "3 + 4 = 7 ; answer 8", sample=1))
    _, alone = rollout_labels(model, words, [one], rollouts=4, seed=0)
    _, both = rollout_labels(model, words, [one, two], rollouts=4, seed=0)
    assert both.generated_tokens == alone.generated_tokens
    assert both.verifier_calls == alone.verifier_calls + 1


# ---------------------------------------------------------------- positions


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that merges across words, as real models have."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    texts = ["3 + 4 = 7 ; answer 7 thanks", "First, é = 2.\n\nThen 3.\n"] * 20
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")


@pytest.mark.parametrize(
    "text", ["3 + 4 = 7 ; answer 7", "um  3 + 4 = 7 ;; 12 ; answer 7 thanks", "; x ;", "a ; é ; b"]
)
def test_steps_end_at_the_token_that_holds_their_last_character(text: str) -> None:
    for words in (tokenizer(), byte_tokenizer()):
        spans, ids = spans_of(SUM, text), encode_completion(words, text)
        at = step_positions(words, text, spans, ids)
        assert at[-1] == len(ids) - 1
        assert at == sorted(set(at))
        offsets = words(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        for span, token in zip(spans[:-1], at[:-1], strict=True):
            assert offsets[token][0] < span.end <= offsets[token][1]


class SlowTokenizer(PreTrainedTokenizerFast):
    """One that knows no offsets, as those written in Python."""

    is_fast = False

    def __call__(self, text: Any, **settings: Any) -> Any:
        assert "return_offsets_mapping" not in settings
        return super().__call__(text, **settings)


def test_tokenizers_without_offsets_find_the_same_tokens() -> None:
    text, words = "um 3 + 4 = 7 ; 7 - 0 = 7 ; answer 7 thanks", tokenizer()
    slow = SlowTokenizer(tokenizer_object=words.backend_tokenizer, eos_token=words.eos_token)
    assert not slow.is_fast
    spans, ids = spans_of(SUM, text), encode_completion(words, text)
    assert step_positions(slow, text, spans, ids) == step_positions(words, text, spans, ids) == [5, 11, 16]


def test_lines_are_the_steps_of_other_texts() -> None:
    prompt = Prompt("how many", "math", 1, {"verifier": "gsm8k", "answer": "7"})
    text = "First 3.\n\n  Then ; 4.\nSo 7 \n"
    spans = spans_of(prompt, text)
    assert [span.text for span in spans] == ["First 3.", "Then ; 4.", "So 7"]
    assert [text[: span.end].split()[-1] for span in spans] == ["3.", "4.", "7"]
    assert [text.split()[span.end_word_index] for span in spans] == ["3.", "4.", "7"]
    assert len(spans_of(prompt, "")) == len(spans_of(prompt, "\n \n")) == 1
    words = byte_tokenizer()
    at = step_positions(words, text, spans, encode_completion(words, text))
    assert [words.decode(encode_completion(words, text)[: token + 1]).strip() for token in at[:1]] == ["First 3."]


# ---------------------------------------------------------------- aggregates


def test_aggregates_by_hand() -> None:
    odds = np.log([3.0, 1.0, 9.0])  # probabilities 3/4, 1/2, 9/10
    assert process_score(odds, "product") == pytest.approx(math.log(0.75 * 0.5 * 0.9))
    assert process_score(odds, "minimum") == pytest.approx(math.log(0.5))
    assert process_score(np.array([-800.0]), "product") == pytest.approx(-800.0)
    assert outcome_score(odds, "last") == pytest.approx(math.log(9))
    assert outcome_score(odds, "mean") == pytest.approx(math.log(27) / 3)


def test_area_under_the_curve_counts_ordered_couples() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.4
    couples = [(a > b) + 0.5 * (a == b) for a in scores[labels] for b in scores[~labels]]
    assert auc(scores, labels) == pytest.approx(np.mean(couples))
    assert auc(scores, np.ones(40)) is None


def test_agreement_counts_strict_wins() -> None:
    pairs = [Pair(SUM, "a", "b", "gold"), Pair(SUM, "a", "b", "gold"), Pair(TIES, "a", "b", "gold")]
    found = agreement(pairs, np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 4.0]))
    assert found == {"accuracy": pytest.approx(1 / 3), "held_out": 3, "by_domain": {"math": 0.5, "ties": 0.0}}


# ---------------------------------------------------------------- the trained artifacts


def test_a_new_head_is_drawn_from_its_seed_and_an_untrained_one_is_refused(policy: Path) -> None:
    first, _ = load_token_classifier(policy / "final", new_head_seed=3)
    torch.manual_seed(99)
    again, _ = load_token_classifier(policy / "final", new_head_seed=3)
    other, _ = load_token_classifier(policy / "final", new_head_seed=4)
    assert torch.equal(first.score.weight, again.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    assert first.score.weight.std().item() == pytest.approx(33**-0.5, rel=0.5)
    with pytest.raises(ValueError, match="not a trained token reward model"):
        load_token_classifier(policy / "final")
    ids = torch.tensor([[5, 6, 7]])
    first.train()
    assert torch.equal(first(input_ids=ids).logits, first(input_ids=ids).logits)  # no dropout


def test_the_outcome_model_learns_and_charges_the_verifier(outcome: tuple[Any, Path]) -> None:
    result, out = outcome
    accuracy = json.loads((out / "accuracy.json").read_text(encoding="utf-8"))
    assert accuracy["by_domain"]["math"] >= 0.9
    assert accuracy["verifiable"] == {"accuracy": accuracy["by_domain"]["math"], "held_out": 40}
    assert accuracy["held_out"] == 41
    assert accuracy["outcome"]["auc"] > 0.9
    assert accuracy["outcome"]["count"] == 80
    assert accuracy["variants"]["last"] == accuracy["accuracy"]
    assert result.ledger.verifier_calls == 200
    assert result.ledger.step_labels == 0
    assert result.ledger.training_flops > 0
    assert result.metrics["labels_mean"] == 0.5


def test_the_process_model_learns_and_charges_step_labels(process: tuple[Any, Path]) -> None:
    result, out = process
    accuracy = json.loads((out / "accuracy.json").read_text(encoding="utf-8"))
    assert accuracy["by_domain"]["math"] >= 0.9
    assert accuracy["steps"]["auc"] > 0.9
    assert accuracy["steps"]["accuracy"] > 0.8
    assert accuracy["steps"]["count"] == 160
    assert (result.ledger.verifier_calls, result.ledger.step_labels) == (0, 400)


def test_every_variant_is_normalised_on_the_reference(outcome: tuple[Any, Path], process: tuple[Any, Path]) -> None:
    for kind, (_, out), variants in (
        (OutcomeReward, outcome, ("last", "mean")),
        (ProcessReward, process, ("product", "minimum")),
    ):
        normalisations = []
        for variant in variants:
            numbers = json.loads((out / f"normalisation-{variant}.json").read_text(encoding="utf-8"))
            normalisations.append((numbers["shift"], numbers["scale"]))
            plain, weighted = kind(out, "cpu", 1.0, variant), kind(out, "cpu", 2.5, variant)
            text = said(SUM, "3 + 4 = 7 ; answer 8")
            assert weighted.score([SUM], [text]) == pytest.approx(2.5 * plain.score([SUM], [text]))
        assert normalisations[0] == read_normalisation(out)
        assert normalisations[0] != normalisations[1]


def test_sources_are_what_their_definition_says(outcome: tuple[Any, Path], process: tuple[Any, Path]) -> None:
    text = said(SUM, "3 + 4 = 7 ; answer 8")
    for out, build_source, log_p in ((outcome[1], OutcomeReward, False), (process[1], ProcessReward, True)):
        model, words = load_token_classifier(out / "final")
        ids = encode_prompts(words, [SUM.text])[0] + encode_completion(words, text.text)
        with torch.no_grad():
            every = model(input_ids=torch.tensor([ids])).logits[0, -len(text.text.split()) - 1 :, 0].double()
        shift, scale = read_normalisation(out)
        source = build_source(out, "cpu", 2.0)
        assert isinstance(source, DetailedSource)
        (detail,) = source.detail([SUM], [text])
        if log_p:
            steps = torch.nn.functional.logsigmoid(every[[4, 8]])
            expected, names = steps.sum().item(), ("3 + 4 = 7", "answer 8")
            assert detail.scores == pytest.approx(steps.tolist(), abs=1e-5)
        else:
            expected, names = every[-1].item(), (*text.text.split(), "<|end|>")
            assert detail.scores == pytest.approx(every.tolist(), abs=1e-5)
        assert detail.names == names
        assert source.score([SUM], [text])[0] == pytest.approx(2.0 * (expected - shift) / scale, abs=1e-5)


def test_order_and_company_change_no_score(outcome: tuple[Any, Path], process: tuple[Any, Path]) -> None:
    prompts = [SUM, TIES, total(1, 2), SUM, TIES, SUM]
    texts = ["answer 7", "red", "1 + 2 = 3 ; answer 3 thanks", "", "sure red thanks", "3 + 4 = 7 ; um answer"]
    completions = [said(p, t, truncated=n == 5) for n, (p, t) in enumerate(zip(prompts, texts, strict=True))]
    completions[3] = said(SUM, "", truncated=True)
    for source in (OutcomeReward(outcome[1], "cpu"), ProcessReward(process[1], "cpu", aggregate="minimum")):
        together = source.score(prompts, completions)
        assert np.isfinite(together).all()
        assert len(set(together.round(4))) == len(together)
        alone = [source.score([p], [c])[0] for p, c in zip(prompts, completions, strict=True)]
        assert together == pytest.approx(alone, abs=1e-4)
        assert source.score(prompts[::-1], completions[::-1]) == pytest.approx(together[::-1], abs=1e-4)


def test_batches_and_padding_change_no_logit(outcome: tuple[Any, Path]) -> None:
    model, _ = load_token_classifier(outcome[1] / "final")
    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, 60, size=2 + n % 3).tolist() for n in range(9)]
    answers = [rng.integers(5, 60, size=n).tolist() for n in range(9)]
    rows = token_logits(model, prompts, answers, batch_size=4)
    assert [len(row) for row in rows] == [max(1, n) for n in range(9)]
    for prompt, answer, row in zip(prompts, answers, rows, strict=True):
        (alone,) = token_logits(model, [prompt], [answer])
        assert row == pytest.approx(alone, abs=1e-4)


def test_micro_batches_change_no_training(policy: Path) -> None:
    """The sum over a step's micro-batches is the loss of the whole, however the labels fall among them."""
    model, words = load_token_classifier(policy / "final", new_head_seed=0)
    labelled, _ = world_labels([(SUM, said(SUM, "3 + 4 = 7 ; answer 8")), (SUM, said(SUM, "answer 7"))])
    rows = token_rows(words, "process", labelled)

    def loss(some: list[dict[str, list[Any]]], items: int | None) -> float:
        batch = collate(some)
        labels = batch.pop("labels")
        return token_loss(model(**batch).logits.squeeze(-1), labels, items).item()

    assert loss(rows[:1], 3) + loss(rows[1:], 3) == pytest.approx(loss(rows, None), rel=1e-5)


def test_rollout_labels_train_a_process_model(policy: Path, pool: Path, tmp_path: Path) -> None:
    result, out = train(policy, pool, tmp_path, "process", labels="rollouts", epochs=1)
    assert result.ledger.step_labels == 0
    assert result.ledger.verifier_calls > 200
    assert result.ledger.generated_tokens > 0
    assert np.isfinite(ProcessReward(out, "cpu").score([SUM], [said(SUM, "answer 7")])).all()


def test_a_stage_that_nothing_can_label_says_so(policy: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    write_samples(pool / "samples.jsonl", [(TIES, said(TIES, "red"))])
    with pytest.raises(ValueError, match=r"samples\.jsonl: none of the prompts .* has a rule verifier"):
        train(policy, pool, tmp_path / "a", "outcome")
    write_samples(pool / "samples.jsonl", [(SUM, said(SUM, "answer 7"))])
    with pytest.raises(ValueError, match="max_length: 4 is shorter"):
        train(policy, pool, tmp_path / "b", "process", max_length=4)


def test_the_configs_name_the_variants_that_exist() -> None:
    settings = {"epochs": 1, "batch": 1, "learning_rate": 0.1, "warmup_steps": 0}
    default = (
        build(OutcomeSource, {"kind": "outcome", "training": settings}, "reward"),
        build(ProcessSource, {"kind": "process", "training": settings}, "reward"),
    )
    assert (default[0].at, default[1].aggregate) == ("last", "product")
