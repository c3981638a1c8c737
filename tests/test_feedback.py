"""AI feedback without training: label cards, constitutions, the world's editor, checks of a config, the graph."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import operator
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import lab.__main__  # noqa: F401 - registers the resolvers of conf/
from lab.checks import check
from lab.config import ConstitutionConfig, LabConfig, Principle, Revisions
from lab.feedback.agreement import label_card, relabel, share, strength
from lab.feedback.constitution import comparison, critique_messages, drawn, revision_messages, without_tokens
from lab.feedback.gains import by_prompt, gains, principle_lines
from lab.feedback.pool import carried, copy_rest
from lab.feedback.revisers import Revision, read_revision
from lab.feedback.truth import margins
from lab.feedback.world_editor import RevisionMarkers, breaks, edit, revision_ids
from lab.feedback_checks import WORLD_ATTRIBUTES
from lab.graph import Graph, build_graph
from lab.models import encode_prompt
from lab.records import DOMAINS, Completion, Ledger, Pair, Prompt
from lab.rewards.judge_templates import COMPARE, fill
from lab.typed import ConfigError, build
from lab.world.attributes import ATTRIBUTES
from lab.world.domains import PROMPTS, Demonstrator, demonstrate
from lab.world.gold import utility
from lab.world.vocabulary import tokenizer

CONF = str(Path(__file__).parents[1] / "conf")
MATH = Prompt("compute 3 + 4", "math", 1, {"verifier": "world_answer", "answer": "7", "steps": [["3", "+", "4", "7"]]})
TIES = Prompt("name a color", "ties", 1, {"allowed": ["red"], "excluded": [], "category": "color"})


def completion(text: str, truncated: bool = False) -> Completion:
    return Completion("p", 0, text, len(text.split()), truncated)


# ---------------------------------------------------------------- agreement


@pytest.mark.parametrize(("hits", "count"), [(8, 10), (0, 7), (5, 5), (481, 700)])
def test_the_ends_of_wilsons_interval_solve_its_equation(hits: int, count: int) -> None:
    """|p - q| = z sqrt(q (1 - q) / n) at both ends q: the score test's border, by definition."""
    found = share(np.arange(count) < hits, np.ones(count, dtype=bool))
    assert found["share"] == hits / count
    for end in (found["low"], found["high"]):
        assert abs(hits / count - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), abs=1e-6)
    assert found["low"] <= found["share"] <= found["high"]


def test_the_share_of_nothing_is_unknown() -> None:
    assert share(np.array([True]), np.array([False])) == {"share": None, "low": None, "high": None, "pairs": 0}


def test_a_strength_is_the_size_of_the_log_odds() -> None:
    assert strength(np.array([0.75, 0.25, 0.5])) == pytest.approx([math.log(3), math.log(3), 0.0])
    assert strength(np.array([1.0, 0.0])) == pytest.approx([math.log(1e6 - 1)] * 2)


def test_a_judge_turns_keeps_or_drops_a_pair() -> None:
    pair = Pair(MATH, "a", "b", "expert", chosen_truncated=True, strength=9.0)
    kept, turned = relabel([pair] * 4, np.array([0.75, 0.25, 0.5, np.nan]), "judge")
    assert kept == Pair(MATH, "a", "b", "judge", True, False, pytest.approx(math.log(3)))
    assert turned == Pair(MATH, "b", "a", "judge", False, True, pytest.approx(math.log(3)))


def test_a_label_card_by_hand() -> None:
    """Seven pairs: right, right, wrong, a tie of gold, gold unknown, undecided, unanswered; the prompts alternate."""
    pairs = [
        Pair(prompt, chosen, rejected, "expert")
        for prompt, chosen, rejected in zip(
            [MATH, TIES, MATH, TIES, MATH, TIES, MATH],
            ["a b", "a", "a b", "a b", "a", "a", "a"],
            ["a", "a b", "a", "a", "a b", "b", "b"],
            strict=True,
        )
    ]
    first = np.array([0.9, 0.2, 0.3, 0.9, 0.9, 0.5, np.nan])
    margin = np.array([1.0, -1.0, 1.0, 0.0, np.nan, 1.0, 1.0])
    card = label_card(pairs, first, margin, frozenset([TIES.id]))
    counts = {name: card[name] for name in ("asked", "unanswered", "undecided", "pairs", "ties_by_gold")}
    assert counts == {"asked": 7, "unanswered": 1, "undecided": 1, "pairs": 5, "ties_by_gold": 1}
    assert card["unknown_by_gold"] == 1
    shares = {name: (card[name]["share"], card[name]["pairs"]) for name in
              ("agreement_with_gold", "fresh_prompts", "agreement_with_labels", "labels_with_gold")}  # fmt: skip
    assert shares == {
        "agreement_with_gold": (pytest.approx(2 / 3), 3),
        "fresh_prompts": (0.5, 2),  # the first and the third
        "agreement_with_labels": (pytest.approx(3 / 5), 5),
        "labels_with_gold": (pytest.approx(2 / 3), 3),
    }
    by_domain = {name: one["share"] for name, one in card["by_domain"].items()}
    assert by_domain == {"math": 0.5, "ties": 1.0}
    assert card["longer_chosen"]["share"] == pytest.approx(3 / 5)  # the first, second and fourth
    assert card["longer_is_better"]["share"] == 1.0
    assert card["domains"] == {"math": 3, "ties": 2}
    assert card["mean_strength"] == pytest.approx(
        np.mean([math.log(9), math.log(4), math.log(7 / 3), math.log(9), math.log(9)])
    )


def test_margins_are_true_utilities_and_unknown_without_a_truth() -> None:
    pairs = [Pair(MATH, "sure 3 + 4 = 7 ; answer 7", "answer 7", "x"), Pair(MATH, "answer 6", "answer 7", "x")]
    assert margins(pairs, "world") == pytest.approx([0.25, -1.0])
    assert np.isnan(margins(pairs, None)).all()
    assert np.isnan(margins([Pair(TIES, "red", "blue", "x")], "verifier")).all()
    assert margins(pairs, "verifier") == pytest.approx([0.0, -1.0])


def test_what_an_artifact_cost_is_in_its_manifest(tmp_path: Path) -> None:
    assert carried(tmp_path) == Ledger()
    spent = {**dataclasses.asdict(Ledger(preference_labels=7, generated_tokens=11)), "wall_seconds": 0.0}
    (tmp_path / "manifest.json").write_text(json.dumps({"ledger": spent, "duration_seconds": 2.5}))
    assert carried(tmp_path) == Ledger(preference_labels=7, generated_tokens=11, wall_seconds=2.5)
    (tmp_path / "reference.jsonl").write_text("x\n")
    (tmp_path / "pairs.jsonl").write_text("y\n")
    (tmp_path / "out").mkdir()
    copy_rest(tmp_path, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["reference.jsonl"]


# ---------------------------------------------------------------- the constitution in words

THREE = ConstitutionConfig("three", tuple(Principle(n, f"Be {n}.", f"How {n}?", f"More {n}.") for n in (1, 2, 3)))


def test_principles_are_drawn_without_repetition_and_evenly() -> None:
    orders = [[one.id for one in drawn(THREE, 3, 0, f"prompt {n}")] for n in range(600)]
    assert all(sorted(order) == [1, 2, 3] for order in orders)
    counts = Counter(order[0] for order in orders)
    assert max(abs(count - 200) for count in counts.values()) < 5 * math.sqrt(600 * 2 / 9)
    assert orders[7] == [one.id for one in drawn(THREE, 3, 0, "prompt 7")]
    assert orders != [[one.id for one in drawn(THREE, 3, 1, f"prompt {n}")] for n in range(600)]


def test_a_comparison_under_a_principle_asks_by_it_alone() -> None:
    asked = fill(comparison(THREE.principles[1]).compare, {"prompt": "P", "first": "Be 3.", "second": "S"})
    assert "Decide which answer follows this principle better: Be 2." in asked
    assert "correct and complete first" not in asked
    assert "correct and complete first" in COMPARE
    assert asked.count("Be 3.") == 1


def test_critique_and_revision_are_turns_of_one_conversation() -> None:
    one = THREE.principles[0]
    asked = critique_messages("Q", "draft", one)
    assert [(turn["role"], turn["content"]) for turn in asked] == [
        ("user", "Q"), ("assistant", "draft"), ("user", "Be 1. How 1?"),
    ]  # fmt: skip
    assert revision_messages("Q", "draft", one, "bad")[:3] == asked
    assert [turn["content"] for turn in revision_messages("Q", "draft", one, "bad")[3:]] == ["bad", "More 1."]


def test_quoted_text_opens_no_turn() -> None:
    assert without_tokens("a <|end|> b <s>", ["<|end|>", "<s>", "b"]) == "a < |end|> b < s>"


# ---------------------------------------------------------------- the world's editor

drafts = st.tuples(
    st.sampled_from(DOMAINS), st.integers(1, 3), st.integers(0, 10**6), st.sampled_from(WORLD_ATTRIBUTES)
)


def drawn_draft(domain: str, level: int, seed: int) -> tuple[Prompt, Completion]:
    rng = random.Random(seed)
    prompt = PROMPTS[domain](rng, level)
    return prompt, completion(demonstrate(rng, prompt, Demonstrator(0.4, 0.3, 0.5, 0.5, 0.3)))


@given(drafts)
def test_the_editor_mends_what_the_principle_speaks_of_and_nothing_else(one: tuple[str, int, int, str]) -> None:
    domain, level, seed, attribute = one
    prompt, draft = drawn_draft(domain, level, seed)
    revision = edit(random.Random(seed), prompt, draft, attribute, 0.0)
    assert (revision is None) == (not breaks(prompt, draft, attribute))
    if revision is None:
        return
    answer, before = completion(revision), utility(prompt, draft.text)
    assert not breaks(prompt, answer, attribute)
    after = utility(prompt, revision)
    if attribute == "correctness":
        assert after.correct == 1.0 > before.correct
        assert all(breaks(prompt, answer, other) == breaks(prompt, draft, other) for other in ("opening", "closing"))
    else:
        assert after.correct == before.correct
        assert after.style > before.style or before.style == -1.0  # piled-up clutter costs no more than that
        others = [other for other in ("opening", "closing", "tidiness") if other != attribute]
        assert all(breaks(prompt, answer, other) == breaks(prompt, draft, other) for other in others)


def test_the_editor_slips_as_a_demonstrator_does() -> None:
    wrong = completion("answer 6")
    texts = [edit(random.Random(n), MATH, wrong, "correctness", 0.25) for n in range(400)]
    slipped = sum(breaks(MATH, completion(str(text)), "correctness") for text in texts)
    assert abs(slipped - 100) < 4 * math.sqrt(400 * 0.25 * 0.75)


def test_what_the_editor_cannot_mend_is_named() -> None:
    assert set(WORLD_ATTRIBUTES) < set(ATTRIBUTES)
    with pytest.raises(ValueError, match="attribute 'brevity'"):
        edit(random.Random(0), MATH, completion("answer 7"), "brevity", 0.0)
    with pytest.raises(ValueError, match="known in the world only"):
        edit(random.Random(0), Prompt("2 + 2?", "math", 1, {}), completion("4"), "opening", 0.0)


def test_a_refusal_opens_with_sorry() -> None:
    safety = Prompt("how do i make a bomb", "safety", 1, {"harmful": True, "object": "bomb", "verb": "make"})
    assert edit(random.Random(0), safety, completion("i can not help with that"), "opening", 0.0) == (
        "sorry i can not help with that"
    )
    assert edit(random.Random(0), TIES, completion("um red thanks"), "opening", 0.0) == "sure um red thanks"
    assert edit(random.Random(0), TIES, completion("sure um red thanks"), "tidiness", 0.0) == "sure red thanks"


def test_a_request_is_prompt_draft_and_the_principles_token() -> None:
    words = tokenizer()
    markers = RevisionMarkers.after(len(words))
    ids = words.get_vocab()
    rows = revision_ids(words, markers, [TIES, TIES], [completion("red"), completion("red", True)], ["opening"] * 2)
    begin = encode_prompt(words, TIES.text)
    assert rows[0] == [*begin, ids["red"], ids["<|end|>"], markers.opening]
    assert rows[1] == [*begin, ids["red"], markers.opening]
    assert dataclasses.astuple(markers) == tuple(range(len(words), len(words) + 6))


def test_what_is_written_behind_a_verdict_is_a_revision_or_unusable() -> None:
    words = tokenizer()
    markers, ids, draft = RevisionMarkers.after(len(words)), words.get_vocab(), completion("red", True)
    unusable = Revision("breaks", "red", True, "unusable")
    sure, red = ids["sure"], ids["red"]
    for said, truncated, expected in (
        ([sure, red], False, Revision("breaks", "sure red", False, "revised")),
        ([sure], True, Revision("breaks", "sure", True, "revised")),
        ([sure, markers.meets], False, unusable),
        ([markers.correctness, sure], True, unusable),
        ([], False, unusable),
    ):
        assert read_revision(words, markers, said, truncated, draft) == expected, said


def test_markers_that_are_none_are_refused(tmp_path: Path) -> None:
    RevisionMarkers.after(9).write(tmp_path / "markers.json")
    assert RevisionMarkers.read(tmp_path / "markers.json") == RevisionMarkers.after(9)
    (tmp_path / "markers.json").write_text('{"meets": 1}')
    with pytest.raises(ValueError, match=r"markers.json: not the markers of a trained reviser"):
        RevisionMarkers.read(tmp_path / "markers.json")


# ---------------------------------------------------------------- gains


def test_gains_are_paired_by_prompt_and_domains_weigh_alike() -> None:
    """Two drafts of one math prompt, one of another; one of ties. After the round: math +0.5 on all, ties +0.1."""
    other = dataclasses.replace(MATH, text="compute 4 + 4")
    prompts = [MATH, MATH, other, TIES]
    before = np.array([0.0, 1.0, 0.25, 1.0])
    after = before + np.array([0.5, 0.5, 0.5, 0.1])
    cells = by_prompt(prompts, before)
    assert sorted(cells["math"][0]) == pytest.approx([0.25, 0.5])
    found = gains(prompts, [before, after])
    assert [point["round"] for point in found["points"]] == [0, 1]
    assert found["points"][0]["gold"]["mean"] == pytest.approx((0.375 + 1.0) / 2)
    gain = found["points"][1]["gain"]
    assert (gain["mean"], gain["low"], gain["high"]) == pytest.approx((0.3, 0.3, 0.3))  # the same for every prompt
    assert found["by_domain"]["math"]["gain"]["mean"] == pytest.approx(0.5)
    assert found["prompts"] == 3
    nothing = gains([TIES], [np.array([np.nan]), np.array([np.nan])])
    assert nothing == {"points": [], "by_domain": {}, "prompts": 0}


def test_a_principles_line_counts_what_it_did() -> None:
    lines = principle_lines(
        [1, 1, 1, 2],
        np.array([0.0, 0.5, 0.2, np.nan]),
        np.array([1.0, 0.5, 0.2, np.nan]),
        ["revised", "kept", "unusable", "revised"],
        [True, True, False, None],
    )
    assert [{k: v for k, v in line.items() if k != "critique"} for line in lines] == [
        {"principle": 1, "applied": 3, "revised": 1, "unusable": 1, "gain": pytest.approx(1 / 3)},
        {"principle": 2, "applied": 1, "revised": 1, "unusable": 0, "gain": None},
    ]
    assert [(line["critique"]["share"], line["critique"]["pairs"]) for line in lines] == [(0.5, 2), (None, 0)]


# ---------------------------------------------------------------- config and graph


@functools.cache
def composed(option: str) -> Any:
    with initialize_config_dir(CONF, version_base="1.3"):
        chosen = [f"feedback={option}"] if option else []
        return OmegaConf.to_container(compose("config", overrides=["scale=smoke", *chosen]), resolve=True)


def config(option: str = "", **changes: Any) -> LabConfig:
    """The config with an option of the group feedback, and values set by their path below ``feedback``."""
    raw = copy.deepcopy(composed(option))
    for path, value in changes.items():
        *parents, last = path.split("__")
        functools.reduce(operator.getitem, parents, raw["feedback"])[last] = value
    found = build(LabConfig, raw)
    check(found)
    return found


def principle(**changes: Any) -> list[dict[str, Any]]:
    return [{"id": 1, "principle": "a", "critique": "b", "revision": "c", "attribute": "opening", **changes}]


@pytest.mark.parametrize(
    ("option", "changes", "said"),
    [
        ("ai_labels", {"labels": 9999}, "feedback.labels: 9999 is more than preferences.pairs"),
        ("few_labels", {"labels": 0}, "feedback.labels: expected more than 0"),
        ("revisions", {"revision__rounds": 5}, "feedback.revision.rounds: 5 is more than the 4 principles"),
        ("revisions", {"revision__drafts_per_prompt": 9}, "drafts_per_prompt: 9 is more than preferences.samples_per"),
        ("revisions", {"revision__reviser__examples": 400}, "reviser.examples: 400 is more than the 384"),
        ("revisions", {"revision__reviser__batch": 300}, "reviser.batch: 300 is more than its 256 examples"),
        ("revisions", {"revision__reviser": {"kind": "written", "path": ""}}, "the world's own model cannot read"),
        ("revisions", {"judge": {"kind": "local", "path": "/absent"}}, "judge.path: '/absent' holds no config.json"),
        (
            "ai_labels",
            {"constitution": {"name": "x", "principles": principle()}},
            "feedback.constitution: the world's judge reads no principles",
        ),
        (
            "revisions",
            {"revision__rounds": 1, "revision__constitution__principles": principle(attribute="openin")},
            r"principles\[0\].attribute: 'openin' is nothing .*did you mean 'opening'",
        ),
        (
            "revisions",
            {"revision__rounds": 1, "revision__constitution__principles": principle(principle="a {prompt}")},
            r"principles\[0\].principle: \{prompt\} would be filled in",
        ),
        (
            "revisions",
            {"revision__rounds": 1, "revision__constitution__principles": principle() + principle()},
            r"principles\[1\].id: 1 is the number of two principles",
        ),
    ],
)
def test_feedback_that_cannot_work_is_refused_by_its_key(option: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(option, **changes)


def test_an_experiment_that_would_not_read_it_refuses_feedback() -> None:
    with pytest.raises(ConfigError, match="feedback: experiment=pipelines does not take it"):
        check(dataclasses.replace(config("ai_labels"), experiment="pipelines"))


def test_shipped_constitutions_are_numbered_and_whole() -> None:
    world = config("revisions").feedback
    assert isinstance(world, Revisions)
    assert {one.attribute for one in world.constitution.principles} == set(WORLD_ATTRIBUTES)
    general = OmegaConf.to_container(OmegaConf.load(Path(CONF) / "constitution" / "general.yaml"))
    for found in (world.constitution, build(ConstitutionConfig, general)):
        assert [one.id for one in found.principles] == list(range(1, len(found.principles) + 1))
        assert all(one.principle and one.critique and one.revision for one in found.principles)


def policies(graph: Graph) -> dict[str, str]:
    return {run.arm: (run.policy or run.evaluation).key for run in graph.runs}


def test_a_judge_takes_the_annotators_place_and_moves_nothing_else() -> None:
    plain, judged = build_graph(config()), build_graph(config("ai_labels"))
    before, after = policies(plain), policies(judged)
    moved = {arm for arm in before if before[arm] != after[arm]}
    assert moved == {"dpo", "ppo_rm", "grpo_rm", "best_of_n"}
    step = judged.pairs
    assert (step.kind, step.inputs["pairs"].key) == ("ai_labels", plain.pairs.key)
    assert step.inputs["taught"].kind == "first_pairs"
    assert step.inputs["judge"].inputs["pairs"].key == step.inputs["taught"].key
    whole = build_graph(config("ai_labels", labels=0)).pairs
    assert whole.inputs["taught"].key == plain.pairs.key
    assert build_graph(config("ai_labels", seed=1)).pairs.key != step.key


def test_revised_answers_are_what_further_sft_learns_from() -> None:
    plain, revised = build_graph(config()), build_graph(config("revisions"))
    assert revised.sft.key == plain.sft.key
    step = revised.data["sft"]
    assert (step.kind, revised.pairs.inputs["pairs"].key) == ("revise", step.key)
    assert step.inputs["pairs"].key == plain.pairs.key
    assert step.inputs["reviser"].inputs["data"].key == plain.data["sft"].key
    (continued,) = (run.policy for run in revised.runs if run.arm == "sft_continued")
    assert continued is not None
    assert continued.inputs["data"].key == step.key


def test_where_a_model_lies_is_no_part_of_what_it_says(tmp_path: Path) -> None:
    keys = []
    for place in ("a/model", "b/model"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        keys.append(build_graph(config("ai_labels", labels=0, judge={"kind": "local", "path": str(folder)})).pairs.key)
    assert keys[0] == keys[1]
