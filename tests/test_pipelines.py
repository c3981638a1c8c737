"""Pipelines: which steps they are made of and share, what they are charged, what their tables and figure say."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir

from experiments import pipelines as experiment
from lab.__main__ import load
from lab.checks import check
from lab.config import (
    LabConfig,
    NoMethod,
    OnlineMethod,
    PipelineConfig,
    RejectionMethod,
    SimpleSource,
    UnpairedMethod,
)
from lab.data.jsonl import read_pairs, write_records
from lab.figures.pipelines import pipelines_figure
from lab.graph import PipelineGraph, StagePoint, build_graph, build_pipelines
from lab.graph.pipelines import STAGE_STRIDE, resampled, share
from lab.models import ModelSize, load_policy, new_policy
from lab.plan import Plan, Step
from lab.records import Ledger, Pair, Prompt
from lab.stages import pairs_union
from lab.stages.online import run as run_online
from lab.store import Context, Store
from lab.tables.pipelines import Contrast, Pipelines, Place, rlvr_claim, tabulate
from lab.tables.pipelines_text import compact, from_payload, markdown, payload
from lab.typed import ConfigError
from lab.world.vocabulary import tokenizer
from tests.synthetic_rows import evaluation_rows, ledgers, plan

CONF = str(Path(__file__).parents[1] / "conf")


def config(*overrides: str) -> LabConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return load(compose("config", overrides=["scale=smoke", *overrides]))


@cache
def default() -> LabConfig:
    return config("experiment=pipelines", "seeds=2")


@cache
def graph() -> PipelineGraph:
    return build_pipelines(default())


def changed(**stages: dict[str, Any]) -> LabConfig:
    """The default config with fields of pipelines, or (PIPELINE__STAGE) of a stage, changed."""
    config, found = default(), dict(default().pipelines)
    for name, fields in stages.items():
        pipeline, _, stage = name.partition("__")
        one: PipelineConfig = found[pipeline]
        if stage:
            fields = {"stages": {**one.stages, stage: dataclasses.replace(one.stages[stage], **fields)}}
        found[pipeline] = dataclasses.replace(one, **fields)
    return dataclasses.replace(config, pipelines=found)


def points(graph: PipelineGraph, pipeline: str, seed: int = 0) -> list[StagePoint]:
    """A pipeline's points under one seed, its start first."""
    own = [point for point in graph.points if point.pipeline == pipeline]
    return [own[0], *(point for point in own if point.number and point.seed == seed)]


# ---------------------------------------------------------------- the graph


@pytest.mark.slow
def test_steps_that_compare_has_too_are_the_same_steps() -> None:
    arms = {(run.arm, run.seed): run for run in build_graph(config("seeds=2", "experiment=compare")).runs}
    first = {"sft_ppo": "ppo_rm", "sft_ppo_rlvr": "ppo_rm", "sft_dpo_rlvr": "dpo", "sft_rlvr": "grpo_verifier"}
    for pipeline, arm in first.items():
        for seed in (0, 1):
            point = points(graph(), pipeline, seed)[1]
            assert arms[arm, seed].policy == point.policy
            assert arms[arm, seed].evaluation == point.evaluation
            assert point.arm == arm
    assert graph().start.evaluation == arms["sft", 0].evaluation


def test_every_stage_starts_from_the_policy_before_it_and_is_measured_from_sft() -> None:
    for name in default().pipelines:
        for seed in (0, 1):
            own = points(graph(), name, seed)
            for before, after in itertools.pairwise(own):
                start = "policy" if after.policy.kind == "sft_continued" else "sft"
                assert after.policy.inputs[start] == before.policy
            for point in own:
                assert point.evaluation.inputs["reference"] == graph().sft
                assert point.evaluation.inputs["policy"] == point.policy
                assert point.evaluation.inputs["prompts"] == graph().start.evaluation.inputs["prompts"]
    assert points(graph(), "base_rlvr")[0].policy == graph().base


def test_policies_that_are_the_same_have_one_name_and_others_have_not() -> None:
    names: dict[str, set[str]] = {}
    for point in graph().points:
        names.setdefault(point.arm, set()).add(point.policy.key)
    for arm, policies in names.items():
        assert len(policies) == (1 if arm in ("sft", "base") else 2), arm  # a policy for each of two seeds
    assert sum(len(policies) for policies in names.values()) == len({p.policy.key for p in graph().points})


def pool(point: StagePoint) -> Step:
    """The pairs that a stage, or its reward model, learns from."""
    reader = point.policy if "pairs" in point.policy.inputs else point.policy.inputs["reward_model"]
    return reader.inputs["pairs"]


def test_rounds_share_the_labels_of_one_round_and_sample_them_from_the_policy_so_far() -> None:
    asked = default().sizes.pairs
    own = points(graph(), "iterated_dpo")
    pools = [pool(point) for point in own[1:]]
    assert [one.inputs["sft"] for one in pools] == [point.policy for point in own[:-1]]
    assert [one.config["preferences"]["pairs"] for one in pools] == [share(asked, 3, turn) for turn in range(3)]
    assert sum(one.config["preferences"]["pairs"] for one in pools) == asked
    assert len({one.config["preferences"]["seed"] for one in pools}) == 3
    only = {"pairs", "seed"}
    shared = points(graph(), "sft_dpo_rlvr")[1].policy.inputs["pairs"]
    for one in pools:
        assert {k: v for k, v in one.config["preferences"].items() if k not in only} == {
            k: v for k, v in shared.config["preferences"].items() if k not in only
        }
        assert one.recipe == shared.recipe


def test_a_round_of_ppo_learns_its_reward_model_from_all_pairs_so_far() -> None:
    own = points(graph(), "iterated_ppo")
    first, second, third = (pool(point) for point in own[1:])
    assert first.kind == "preferences"
    assert [len(one.inputs) for one in (second, third)] == [2, 3]
    assert second.inputs["pairs-0"] == third.inputs["pairs-0"] == first
    assert third.inputs["pairs-2"].inputs["sft"] == own[2].policy
    paid = [step for step in graph().spent_on(own[3].policy) if step.kind == "preferences"]
    assert sum(step.config["preferences"]["pairs"] for step in paid) == default().sizes.pairs
    steps = [
        point.policy.config["method"]["steps"] for point in points(build_pipelines(demo_steps()), "iterated_ppo")[1:]
    ]
    assert steps == [3, 2, 2]  # seven rollouts in three rounds
    warm = [point.policy.config["method"]["warmup_steps"] for point in own[1:]]
    assert warm == [1, 0, 0]


def demo_steps() -> LabConfig:
    method = default().pipelines["iterated_ppo"].stages["ppo"].method
    assert isinstance(method, OnlineMethod)
    return changed(iterated_ppo__ppo={"method": dataclasses.replace(method, steps=7)})


def test_fresh_pairs_of_a_first_stage_without_rounds_are_the_shared_pool() -> None:
    again = build_pipelines(changed(sft_dpo_rlvr__dpo={"pairs": "fresh"}))
    assert points(again, "sft_dpo_rlvr")[1].policy == points(graph(), "sft_dpo_rlvr")[1].policy


def test_a_pool_that_is_changed_after_labelling_is_changed_again_when_it_is_asked_for_anew() -> None:
    sft, policy = graph().sft, points(graph(), "sft_dpo_rlvr")[1].policy
    asked = Step("preferences", {"preferences": {"pairs": 9, "seed": 0}}, {"sft": sft})
    filtered = Step("filter", {"rule": 1}, {"pairs": Step("decontaminate", {}, {"training": asked, "other": sft})})
    found = resampled(filtered, policy, 4, 2)
    assert (found.kind, found.config) == ("filter", {"rule": 1})
    inner = found.inputs["pairs"].inputs["training"]
    assert inner.inputs["sft"] == policy
    assert inner.config["preferences"] == {"pairs": 4, "seed": 2}
    with pytest.raises(ConfigError, match="a step 'file' makes cannot be asked for again"):
        resampled(Step("file"), policy, 4, 2)


def test_the_anchor_is_where_a_stage_starts_unless_it_is_sft() -> None:
    for point in graph().points:
        assert "reference" not in point.policy.inputs
    method = default().pipelines["sft_dpo_rlvr"].stages["rlvr"].method
    assert isinstance(method, OnlineMethod)
    held = {"anchor": "sft", "method": dataclasses.replace(method, kl_coefficient=0.05)}
    again = build_pipelines(changed(sft_dpo_rlvr__rlvr=held, iterated_dpo__dpo={"anchor": "sft"}))
    assert points(again, "sft_dpo_rlvr")[2].policy.inputs["reference"] == graph().sft
    rounds = [point.policy.inputs.get("reference") for point in points(again, "iterated_dpo")[1:]]
    assert rounds == [None, graph().sft, graph().sft]  # the first one starts there anyway


def test_later_stages_see_the_prompts_in_another_order() -> None:
    seeds = [[p.policy.config["seed"] for p in points(graph(), "sft_ppo_rlvr", seed)[1:]] for seed in (0, 1)]
    assert seeds == [[0, STAGE_STRIDE], [1, 1 + STAGE_STRIDE]]
    rounds = points(graph(), "iterated_ppo", 1)[1:]
    assert [p.policy.inputs["reward_model"].config["seed"] for p in rounds] == [1, 1, 1]


def test_shares_are_even_and_whole() -> None:
    for total in range(12):
        for rounds in range(1, 6):
            parts = [share(total, rounds, number) for number in range(rounds)]
            assert sum(parts) == total
            assert max(parts) - min(parts) <= 1
            assert parts == sorted(parts, reverse=True)


def test_the_control_of_rejection_sampling_answers_the_same_and_asks_nobody() -> None:
    best, drawn = (points(graph(), name)[1].policy.inputs["data"] for name in ("rejection", "rejection_random"))
    same = ("samples", "seed", "temperature", "split", "max_new_tokens")
    assert {key: best.config[key] for key in same} == {key: drawn.config[key] for key in same}
    assert best.inputs["sft"] == drawn.inputs["sft"] == graph().sft
    kinds = {step.kind for step in graph().spent_on(points(graph(), "rejection_random")[1].policy)}
    assert kinds == {"data", "sft", "rejection", "sft_continued"}


@pytest.mark.parametrize(
    ("where", "fields", "message"),
    [
        ("iterated_dpo", {"rounds": 97}, r"pipelines\.iterated_dpo\.rounds: 97 rounds share the 96 pairs"),
        ("sft_kto", {"against": "sft_dpo_rlvr.dop"}, r"sft_kto\.against: .*did you mean 'sft_dpo_rlvr\.dpo'"),
        ("sft_kto", {"stages": {}}, r"pipelines\.sft_kto\.stages: there are none"),
        ("sft_kto__kto", {"method": NoMethod("none")}, r"stages\.kto\.method\.kind: none leaves no policy"),
        ("rejection__rejection", {"anchor": "sft"}, r"rejection\.anchor: supervised training is held to nothing"),
        ("sft_ppo__ppo_rm", {"reward": None}, r"pipelines\.sft_ppo\.stages\.ppo_rm\.reward: missing"),
        ("sft_kto__kto", {"reward": SimpleSource("random")}, r"kto\.reward: a method of kind unpaired takes no reward"),
    ],
)
def test_what_cannot_run_is_refused_by_name(where: str, fields: dict[str, Any], message: str) -> None:
    check(default())
    with pytest.raises(ConfigError, match=message):
        check(changed(**{where: fields}))


def test_the_settings_of_kto_and_of_rejection_sampling_are_checked() -> None:
    kto = default().pipelines["sft_kto"].stages["kto"].method
    sampled = default().pipelines["rejection"].stages["rejection"].method
    assert isinstance(kto, UnpairedMethod)
    assert isinstance(sampled, RejectionMethod)
    for method, message in (
        (dataclasses.replace(kto, kl_batch=5), r"kl_batch: 5 does not divide"),
        (dataclasses.replace(kto, kl_batch=1), r"kl_batch: KTO pairs prompts with other rows' completions"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(changed(sft_kto__kto={"method": method}))
    bare = dataclasses.replace(sampled, sampling=dataclasses.replace(sampled.sampling, reward=None))
    with pytest.raises(ConfigError, match=r"sampling\.reward: missing, and rule best needs scores"):
        check(changed(rejection__rejection={"method": bare}))


def test_pipelines_are_refused_where_nothing_would_run_them() -> None:
    with pytest.raises(ConfigError, match=r"pipelines: experiment=compare runs none"):
        check(dataclasses.replace(default(), experiment="compare"))
    with pytest.raises(ConfigError, match=r"pipelines: there are none"):
        experiment.run(dataclasses.replace(default(), pipelines={}))


# ---------------------------------------------------------------- what was spent


def test_all_that_is_upstream_is_charged_once_and_the_base_is_not(tmp_path: Path) -> None:
    """Every step writes a ledger of one label; a policy is charged one for each step that it needed."""
    store = Store(tmp_path / "store")
    policy = points(graph(), "iterated_ppo")[3]

    sampled = points(graph(), "rejection")[1]
    for step in Plan([policy.policy, sampled.policy]).steps:
        with store.build(step) as building:
            assert building is not None
            (building.out / "x").write_text("x")
            building.finish(Ledger(preference_labels=1, training_flops=10.0, demonstrations=7))
    found = experiment.ledger(graph(), store, policy)
    base = len(Plan([graph().base]).steps)
    assert found.preference_labels == len(Plan([policy.policy]).steps) - base
    assert found.training_flops == 10.0 * found.preference_labels
    data = [step for step in graph().spent_on(policy.policy) if step.kind == "data"]
    assert found.demonstrations == 7 * (found.preference_labels - len(data))
    kinds = [step.kind for step in graph().spent_on(sampled.policy) if step.kind not in ("data", "sft_continued")]
    assert experiment.ledger(graph(), store, sampled).demonstrations == 7 * len(kinds)  # its own samples are nobody's


def test_what_only_watched_is_not_charged() -> None:
    watched = Step("reward_model", {"seed": 9})
    policy = Step("online", {}, {"sft": graph().sft, "watch-other.reward_model": watched})
    assert watched not in graph().spent_on(policy)
    assert policy in graph().spent_on(policy)


# ---------------------------------------------------------------- stages


def test_pools_are_joined_with_the_newest_ones_held_out_pairs(tmp_path: Path) -> None:
    inputs = {}
    for number in range(11):  # by number, not by name: pairs-10 is after pairs-9
        folder = tmp_path / str(number)
        folder.mkdir()
        pair = Pair(Prompt(f"p{number}", "math", 1), "good", "bad", "test")
        for name in ("pairs", "held_out", "reference"):
            write_records(folder / f"{name}.jsonl", [pair])
        inputs[f"pairs-{number}"] = folder
    (tmp_path / "out").mkdir()
    result = pairs_union.run({}, inputs, tmp_path / "out", Context("key", "key", tmp_path))
    assert [pair.prompt.text for pair in read_pairs(tmp_path / "out" / "pairs.jsonl")] == [f"p{n}" for n in range(11)]
    assert [pair.prompt.text for pair in read_pairs(tmp_path / "out" / "held_out.jsonl")] == ["p10"]
    assert [pair.prompt.text for pair in read_pairs(tmp_path / "out" / "reference.jsonl")] == ["p10"]
    assert result.ledger == Ledger()
    assert result.metrics["pools"] == [1] * 11


@pytest.mark.slow
def test_an_online_stage_is_held_to_the_reference_that_it_is_given(tmp_path: Path) -> None:
    for name, seed in (("start", 1), ("anchor", 2)):
        new_policy(ModelSize(16, 2, 2, 32), tokenizer(), seed=seed).save_pretrained(tmp_path / name / "final")
        tokenizer().save_pretrained(tmp_path / name / "final")
    moved, _ = load_policy(tmp_path / "anchor" / "final")
    with torch.no_grad():
        moved.lm_head.weight.mul_(4.0)
    moved.save_pretrained(tmp_path / "anchor" / "final")
    write_records(tmp_path / "rl.jsonl", [Prompt(f"compute {n} + 1", "math", 1) for n in range(4)])
    method = {"kind": "online", "advantage": "group", "steps": 1, "prompts_per_rollout": 2, "completions_per_prompt": 2,
              "learning_rate": 1e-4, "warmup_steps": 0, "kl_coefficient": 0.1, "max_completion_length": 4}  # fmt: skip
    kl = {}
    for name, given in {"start": {}, "anchor": {"reference": tmp_path / "anchor"}}.items():
        (tmp_path / f"{name}-out").mkdir()
        context = Context("key", "key", tmp_path / f"{name}-scratch", resources={"device": "cpu"})
        inputs = {"sft": tmp_path / "start", "prompts": tmp_path, **given}
        settings = {"method": method, "reward": {"kind": "random", "scale": 1.0}, "seed": 0}
        kl[name] = run_online(settings, inputs, tmp_path / f"{name}-out", context).metrics["kl_estimate_nats"]
    assert kl["start"] == pytest.approx(0.0, abs=1e-5)
    assert abs(kl["anchor"]) > 0.01


# ---------------------------------------------------------------- tables


ARMS = ("sft", "dpo", "grpo_verifier", "ppo_rm")
PLACES = [
    Place("", "–", 0, "sft", "SFT", "sft"),
    Place("two", "SFT → DPO → RLVR", 1, "dpo", "DPO", "dpo", "sft", "preferences"),
    Place("two", "SFT → DPO → RLVR", 2, "rlvr", "RLVR", "grpo_verifier", "dpo", "verifier"),
    Place("one", "SFT → RM → PPO", 1, "ppo_rm", "PPO", "ppo_rm", "sft", "classifier"),
]


def tables(rows: pd.DataFrame, **given: Any) -> Pipelines:
    settings: dict[str, Any] = {"expected": plan(ARMS), "costs": ledgers(ARMS), "resamples": 50}
    contrast = [Contrast("one", "PPO", "ppo_rm", "DPO", "dpo")]
    return tabulate(rows, PLACES, contrast, **settings | given)


@cache
def rows() -> pd.DataFrame:
    return evaluation_rows(ARMS, prompts=6, samples=2, points=1)


@cache
def found() -> Pipelines:
    return tables(rows())


def shifted(rows: pd.DataFrame, arm: str, of: str, by: Mapping[str, float]) -> pd.DataFrame:
    """``arm``'s rows become those of ``of`` plus a constant a domain."""
    own = rows[(rows.arm == of) & rows.final].assign(arm=arm, run=lambda frame: "x" + frame.run)
    own = own.assign(gold=own.gold + own.domain.map(dict(by)).fillna(0.0))
    return pd.concat([rows[rows.arm != arm], own], ignore_index=True)


@pytest.mark.slow
def test_a_change_is_paired_by_seed_and_prompt() -> None:
    """A stage that adds the same to every answer: the change has no spread at all, whatever seeds and prompts have."""
    changes = tables(shifted(rows(), "grpo_verifier", "dpo", {"math": 0.3})).changes
    own = changes[(changes.pipeline == "two") & (changes.number == 2)].set_index("domain")
    for name in ("gold_change", "gold_change_low", "gold_change_high"):
        assert own[name]["math"] == pytest.approx(0.3)
        assert own[name]["ties"] == pytest.approx(0.0)
        assert own[name]["verifiable"] == pytest.approx(0.1)
        assert own[name]["all"] == pytest.approx(0.05)
    assert own.n_seeds.eq(3).all()
    first = changes[(changes.pipeline == "two") & (changes.number == 1)].set_index("domain")
    assert first.gold_change_low["all"] < first.gold_change["all"] < first.gold_change_high["all"]


def test_the_change_is_the_difference_of_the_means_and_the_pairs_of_seeds_matter() -> None:
    table, changes = found().table.set_index(["arm", "domain"]), found().changes
    for _, line in changes.iterrows():
        before, after = table.gold[line.before, line.domain], table.gold[line.arm, line.domain]
        assert line.gold_change == pytest.approx(after - before)
    swapped = shifted(rows(), "grpo_verifier", "dpo", {})
    swapped.loc[swapped.arm == "grpo_verifier", "seed"] = (
        swapped.loc[swapped.arm == "grpo_verifier", "seed"].map({0: 1, 1: 2, 2: 0})
    )  # fmt: skip
    own = tables(swapped).changes.set_index(["pipeline", "number", "domain"])
    assert own.gold_change["two", 2, "all"] == pytest.approx(0.0)
    assert own.gold_change_high["two", 2, "all"] > 0.001  # other seeds' answers: no longer the same


def test_a_contrast_is_the_difference_between_two_ends() -> None:
    table = found().table.set_index(["arm", "domain"]).gold
    for _, line in found().contrasts.iterrows():
        assert line.gold_change == pytest.approx(table["ppo_rm", line.domain] - table["dpo", line.domain])
        assert line.gold_change_low < line.gold_change < line.gold_change_high


@pytest.mark.parametrize(
    ("checked", "others", "verdict", "said"),
    [
        (0.2, -0.2, "bear it out", ("raised", "lowered")),
        (0.2, 0.0, "bear it out", ("raised", "no change shown")),
        (0.2, 0.2, "refute it", ("raised", "raised")),
        (-0.2, 0.0, "refute it", ("lowered", "no change shown")),
        (0.0, 0.0, "do not settle it", ("no change shown", "no change shown")),
    ],
)
def test_the_claim_follows_from_the_rows(checked: float, others: float, verdict: str, said: tuple[str, str]) -> None:
    def line(number: int, paid_by: str, part: str, change: float) -> dict[str, Any]:
        change_of = {"gold_change": change, "gold_change_low": change - 0.1, "gold_change_high": change + 0.1}
        return {"pipeline": "p", "pipeline_label": "P", "number": number, "paid_by": paid_by, "domain": part,
                "n_seeds": 3, **change_of}  # fmt: skip

    changes = [line(1, "preferences", part, 9.0) for part in ("verifiable", "unverifiable")]  # no RLVR: not asked
    changes += [line(2, "verifier", "verifiable", checked), line(2, "verifier", "unverifiable", others)]
    lines = rlvr_claim(Pipelines(pd.DataFrame(), pd.DataFrame(changes), pd.DataFrame(), 0.95))
    assert verdict in lines[0]
    assert len(lines) == 2  # the one stage that a verifier pays
    low, high = checked - 0.1, checked + 0.1
    assert lines[1].startswith(f"P, stage 2: verifiable {checked:+.3f} [{low:+.3f}, {high:+.3f}] ")
    assert re.findall(r"\((raised|lowered|no change shown)\)", lines[1]) == list(said)


@pytest.mark.slow
def test_a_missing_stage_stays_in_the_table_with_its_reason() -> None:
    there = rows()[(rows().arm != "grpo_verifier") & ~((rows().arm == "dpo") & (rows().seed == 2))]
    given = tables(there, failures={"grpo_verifier": ["it broke"]}, costs={**ledgers(ARMS), "grpo_verifier": []})
    head, body = compact(given)
    assert head[-1] == "status"
    seeds = {(line[0], line[1]): (line[2], line[-1]) for line in body}
    assert seeds["SFT → DPO → RLVR", "RLVR"] == ("0 of 3", "failed: it broke")
    assert seeds["SFT → DPO → RLVR", "DPO"] == ("2 of 3", "partial: no rows of seed 2")
    assert rlvr_claim(given) == []
    assert pipelines_figure(from_payload(json.loads(json.dumps(payload(given))))) is not None


def test_tables_survive_json_and_say_what_they_say() -> None:
    again = from_payload(json.loads(json.dumps(payload(found()))))
    assert markdown(again) == markdown(found())
    text = markdown(found())
    line = next(line for line in text.splitlines() if line.startswith("| SFT → DPO → RLVR | RLVR |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    gold = found().table.set_index(["arm", "domain"]).loc[("grpo_verifier", "all")]
    assert cells[3] == f"{gold.gold:.3f} [{gold.gold_low:.3f}, {gold.gold_high:.3f}]"
    head, _ = compact(found())
    for name in ("math", "factuality", "instructions", "safety", "focus", "ties", "labels", "verifier calls", "FLOPs"):
        assert name in head
    assert rlvr_claim(found())[0] in text


def test_the_figure_has_a_row_for_every_stage_and_a_panel_for_what_can_be_checked() -> None:
    figure = pipelines_figure(found(), note="a note")
    texts = [text.get_text() for axes in figure.axes for text in axes.texts] + [
        text.get_text() for text in figure.texts
    ]
    for said in ("SFT → DPO → RLVR", "after DPO", "after RLVR", "after PPO", "a note", "gold, verifiable domains"):
        assert said in texts
    assert len(figure.axes) == 2
    dots = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", None, "")]
    assert len(dots) == 3
    gold = found().table.set_index(["arm", "domain"]).gold
    assert [float(line.get_xdata()[0]) for line in dots] == pytest.approx(  # type: ignore[index, arg-type]
        [gold["dpo", "verifiable"], gold["grpo_verifier", "verifiable"], gold["ppo_rm", "verifiable"]]
    )


def test_places_and_contrasts_come_from_the_graph() -> None:
    own = experiment.places(graph())
    assert [(place.pipeline, place.arm) for place in own[:2]] == [("", "sft"), ("", "base")]
    by_stage = {(place.pipeline, place.stage): place for place in own}
    assert by_stage["sft_dpo_rlvr", "rlvr"].before == "dpo"
    assert by_stage["base_rlvr", "rlvr"].before == "base"
    assert by_stage["iterated_dpo", "dpo.2"].before == by_stage["iterated_dpo", "dpo.1"].arm
    paid = {stage: by_stage[stage].paid_by for stage in (("sft_ppo", "ppo_rm"), ("sft_kto", "kto"), ("sft_rlvr", "grpo_verifier"), ("rejection", "rejection"))}  # fmt: skip # noqa: E501
    assert list(paid.values()) == ["classifier", "preferences", "verifier", "samples"]
    assert len(own) == 2 + sum(len(one.stages) * one.rounds for one in default().pipelines.values())
    found = {one.pipeline: (one.arm, one.against_arm) for one in experiment.contrasts(default(), graph())}
    assert found["iterated_dpo"] == ("iterated_dpo.dpo.3", "dpo")
    assert found["rejection"] == ("rejection", "rejection_random.rejection")


@pytest.mark.slow
def test_the_experiment_runs_to_the_end_and_again_without_work(tmp_path: Path) -> None:
    overrides = [f"~pipelines.{name}" for name in ("sft_ppo_rlvr", "base_rlvr", "rejection", "rejection_random")]
    overrides += [f"pipelines.{name}.rounds=2" for name in ("iterated_dpo", "iterated_ppo")]
    overrides += [f"run.store={tmp_path / 'store'}", f"run.results={tmp_path / 'results'}"]
    settings = config("experiment=pipelines", *overrides)
    assert experiment.run(settings) == 0
    table = pd.read_csv(tmp_path / "results" / "table.csv")
    assert {"sft_ppo", "sft_rlvr", "sft_dpo_rlvr", "iterated_dpo", "iterated_ppo", "sft_kto"} <= set(table.pipeline)
    labels = table[table.domain == "all"].set_index(["pipeline", "number"]).preference_labels
    assert labels["iterated_dpo", 2] == labels["sft_dpo_rlvr", 1] == settings.sizes.pairs
    assert labels["iterated_dpo", 1] == settings.sizes.pairs / 2
    assert labels["sft_rlvr", 1] == 0
    first = (tmp_path / "results" / "pipelines.png").read_bytes()
    assert experiment.run(settings) == 0
    assert (tmp_path / "results" / "pipelines.png").read_bytes() == first
