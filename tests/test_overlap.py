"""Overlap of training with evaluation data: what a copy may change, planted leaks, brute force, the policy."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import example, given, settings
from hypothesis import strategies as st

from experiments import overlap as gate
from lab.__main__ import CONF, load
from lab.config import ConfigError, CountsConfig, JsonlData, LabConfig, OverlapConfig, build
from lab.data.jsonl import read_demonstrations, write_records, write_rows
from lab.data.overlap import (
    KINDS,
    RECALL,
    EvaluationIndex,
    Overlap,
    banding,
    jaccard,
    normalise,
    prompt_texts,
    shingles,
)
from lab.filter_checks import check_filters
from lab.graph import build_graph
from lab.graph.overlap import check_steps, decontaminated
from lab.plan import Plan, Step
from lab.records import Demonstration, Prompt
from lab.stages import decontaminate, overlap
from lab.store import Context, Store
from lab.world.generate import prompts

SETTINGS: dict[str, Any] = {"threshold": 0.8, "width": 3, "permutations": 128}


def index(sets: dict[str, Sequence[str]], **changes: Any) -> EvaluationIndex:
    return EvaluationIndex(sets, **(SETTINGS | changes))


# ---------------------------------------------------------------- normalisation


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  What IS\tthe\n capital? ", "what is the capital"),
        ("“What’s” — the, capital...", "what s the capital"),
        ("Ｗｈａｔ ﬁts", "what fits"),  # full width and ligature: NFKC
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("cafe\u0301", "café"),
        ("zero\u200bwidth soft\u00adhyphen", "zerowidth softhyphen"),
        ("3+2", "3 + 2"),
        ("7 - 3", "7 - 3"),
        ("7 \u2212 3", "7 - 3"),  # the minus sign
        ("7 * 3", "7 * 3"),
        ("50%", "50 %"),
        ("- a well-known list", "a well known list"),
        ("costs $5 or €5", "costs $ 5 or € 5"),
        ("?! ...", "?! ..."),
        ("", ""),
    ],
)
def test_what_a_copy_may_change_is_gone(text: str, normal: str) -> None:
    assert normalise(text) == normal


def test_what_makes_another_question_stays() -> None:
    texts = ["7 - 3", "7 + 3", "7 * 3", "7 / 3", "7 3", "73", "x > 3", "x < 3", "कि", "की", "?!", "!?"]
    assert len({normalise(text) for text in texts}) == len(texts)


@given(st.text())
@example("ΐ ŉ ǰ İ")
@example("-1")
@example("a--1%")
def test_normalising_again_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.lists(st.text("abcXYZéß0159", min_size=1), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_case_space_and_punctuation_make_no_other_text(words: list[str], rng: random.Random) -> None:
    disguised = "".join(
        rng.choice([" ", "\n\t", "  ", "\u00a0", ", ", " ?! ", "… "]) + rng.choice([str.upper, str.lower, str])(word)
        for word in words
    )
    assert normalise(unicodedata.normalize("NFD", disguised) + "!") == normalise(" ".join(words))


def test_shingles_and_their_similarity() -> None:
    assert shingles("a b c d", 3) == {"a b c", "b c d"}
    assert shingles("a b", 3) == {"a b"}
    assert jaccard(frozenset("abc"), frozenset("bcd")) == 0.5
    assert jaccard(frozenset("ab"), frozenset("cd")) == 0


# ---------------------------------------------------------------- the search


@pytest.mark.parametrize(("threshold", "permutations"), [(0.8, 128), (0.5, 128), (0.9, 64), (1.0, 16), (0.7, 256)])
def test_bands_are_the_most_selective_that_find_enough(threshold: float, permutations: int) -> None:
    bands, rows, recall = banding(threshold, permutations)
    assert bands * rows <= permutations
    assert recall == pytest.approx(1 - (1 - threshold**rows) ** bands)
    assert recall >= RECALL
    more = rows + 1
    assert bands >= 2
    assert more > permutations // 2 or 1 - (1 - threshold**more) ** (permutations // more) < RECALL


def brute_force(training: Sequence[str], sets: dict[str, Sequence[str]], threshold: float, width: int) -> Any:
    """Every training row against every evaluation text, without any index."""
    result: dict[str, dict[str, tuple[list[int], int]]] = {}
    rows = [(text, shingles(text, width)) for text in map(normalise, training)]
    for name, texts in sets.items():
        wanted = {text: shingles(text, width) for text in map(normalise, texts)}
        exact_rows, near_rows = [], []
        exact_texts, near_texts = set(), set()
        for row, (text, own) in enumerate(rows):
            near = [other for other in wanted if other != text and jaccard(own, wanted[other]) >= threshold]
            near_texts |= set(near)
            if text in wanted:
                exact_rows.append(row)
                exact_texts.add(text)
            elif near:
                near_rows.append(row)
        result[name] = {"exact": (exact_rows, len(exact_texts)), "near": (near_rows, len(near_texts - exact_texts))}
    return result


def found(result: Overlap) -> Any:
    return {name: {kind: (one[kind].rows, one[kind].prompts) for kind in KINDS} for name, one in result.sets.items()}


WORDS = ["please", "tell", "me", "the", "capital", "of", "river", "Ivor", "now", "again"]


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.5, 0.8, 1.0]), st.sampled_from([1, 2, 3]))
def test_nothing_but_what_brute_force_finds_and_all_that_is_equal(seed: int, threshold: float, width: int) -> None:
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 7))) for _ in range(40)]
    sets = {"evaluation": texts[:8], "benchmark": texts[4:14]}  # a text may be in two sets
    training = [*texts[10:], *rng.choices(texts, k=3)]
    truth = brute_force(training, sets, threshold, width)
    seen = index(sets, threshold=threshold, width=width).compare(training)
    for name, kinds in found(seen).items():
        assert kinds["exact"] == truth[name]["exact"]
        assert set(kinds["near"][0]) <= set(truth[name]["near"][0])
        assert kinds["near"][1] <= truth[name]["near"][1]


def test_the_worlds_own_prompts_are_found_as_brute_force_finds_them() -> None:
    """The oracle on data where nearly everything has a near duplicate. LSH may miss a pair at the threshold."""
    training = [prompt.text for prompt in prompts("rl", 400, 0, distinct=False)]
    sets = {name: [p.text for p in prompts(name, 60, 0, distinct=True)] for name in ("evaluation", "tuning")}
    truth, seen = brute_force(training, sets, 0.6, 2), found(index(sets, threshold=0.6, width=2).compare(training))
    assert len(truth["evaluation"]["near"][0]) > 20
    for name, kinds in truth.items():
        assert seen[name]["exact"] == kinds["exact"] == ([], 0)
        missed = set(kinds["near"][0]) - set(seen[name]["near"][0])
        assert set(seen[name]["near"][0]) <= set(kinds["near"][0])
        assert len(missed) <= (1 - RECALL) * len(kinds["near"][0])


def test_planted_leaks_and_duplicates_are_counted() -> None:
    evaluation = [
        f"what is the {word} of the number {n} in this long list of things" for n, word in enumerate("abcdef")
    ]
    clean = [f"explain how to build a kite from {n} sheets of paper and some glue" for n in range(20)]
    leaked = [evaluation[0].upper(), evaluation[1].replace(" ", "   ") + " ?", evaluation[1] + "!!"]
    near = evaluation[2].replace("things", "items")
    result = index({"evaluation": evaluation}).compare([*clean, *leaked, near, clean[3].title()])
    assert (result.rows, result.duplicates) == (25, 2)  # the second copy of a leak, and the planted one
    assert found(result) == {"evaluation": {"exact": ([20, 21, 22], 2), "near": ([23], 1)}}
    shown = result.sets["evaluation"]["exact"].examples
    assert [(one.row, one.evaluation, one.similarity) for one in shown] == [
        (20, evaluation[0], 1),
        (21, evaluation[1], 1),
    ]
    assert result.sets["evaluation"]["near"].examples[0].similarity == pytest.approx(
        11 / 13
    )  # 12 shingles, one changed
    assert result.overlapping(["exact"]) == {20, 21, 22}
    assert result.overlapping(KINDS) == {20, 21, 22, 23}
    report = result.report()
    assert (report["exact"], report["near"], report["duplicates"]) == (3, 1, 2)
    assert report["sets"]["evaluation"]["exact"]["share"] == 3 / 25


def test_a_row_equal_to_one_set_may_be_near_another() -> None:
    sets = {"one": ["a b c d e"], "two": ["a b c d f"]}
    result = index(sets, threshold=0.5).compare(["A b c d e"])
    assert found(result) == {"one": {"exact": ([0], 1), "near": ([], 0)}, "two": {"exact": ([], 0), "near": ([0], 1)}}
    assert (result.report()["exact"], result.report()["near"]) == (1, 0)


def test_what_has_no_words_is_compared_too() -> None:
    result = index({"evaluation": ["?!", "\ud800 lone"]}).compare(["?!", "...", "", "\ud800  LONE"])
    assert result.sets["evaluation"]["exact"].rows == [0, 3]


# ---------------------------------------------------------------- the stages


def write(folder: Path, name: str, texts: Sequence[str]) -> Path:
    folder.mkdir(exist_ok=True)
    write_records(folder / name, [Prompt(text, "math", 1) for text in texts])
    return folder


def test_prompts_are_read_from_every_kind_of_row(tmp_path: Path) -> None:
    prompt = {"text": "q", "domain": "d", "level": 1, "gold": {}}
    write_rows(tmp_path / "a.jsonl", [prompt, {"prompt": prompt, "completion": "c"}, {"prompt": "q", "chosen": "c"}])
    assert list(prompt_texts(tmp_path / "a.jsonl")) == ["q"] * 3
    write_rows(tmp_path / "b.jsonl", [{"question": "q"}])
    with pytest.raises(ValueError, match=r"b\.jsonl:1: key 'text' is missing"):
        list(prompt_texts(tmp_path / "b.jsonl"))


TESTS = [f"evaluation question number {word} about the great river" for word in "abcdefgh"]
TRAIN = [f"training question with {word} inside and some other words" for word in "abcdefgh"]


@pytest.fixture
def leaky(tmp_path: Path) -> dict[str, Path]:
    """Data with two copies of evaluation prompts, one near and one duplicate in the training set."""
    data = tmp_path / "data"
    near = TESTS[2].replace("great", "big")
    texts = [TRAIN[0], TESTS[0].upper(), *TRAIN[1:], TRAIN[1], f" {TESTS[1]}? ", near]
    data.mkdir()
    write_records(data / "sft.jsonl", [Demonstration(Prompt(text, "math", 1), f"answer {text}") for text in texts])
    write(data, "evaluation.jsonl", TESTS)
    (data / "card.json").write_text('{"kind": "world"}', encoding="utf-8")
    (data / "manifest.json").write_text("{}", encoding="utf-8")
    return {"training": data, "evaluation.test": write(tmp_path / "test", "evaluation.jsonl", TESTS)}


def context(folder: Path) -> Context:
    return Context("key", "seed", folder, resources={"device": "cpu"})


def test_the_overlap_is_measured_and_stored(leaky: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    config = {
        "training": {"sft": "sft.jsonl"},
        "evaluation": {"test": "evaluation.jsonl"},
        **SETTINGS,
        "threshold": 0.4,
    }
    inputs = {"training.sft": leaky["training"], "evaluation.test": leaky["evaluation.test"]}
    result = overlap.run(config, inputs, out, context(tmp_path))
    report = json.loads((out / "overlap.json").read_text(encoding="utf-8"))
    assert result.metrics == {"rows": 12, "exact": 2, "near": 1, "duplicates": 1}
    sets = report["training"]["sft"]["sets"]["test"]
    assert (sets["exact"]["rows"], sets["exact"]["prompts"], sets["near"]["rows"]) == (2, 2, 1)
    assert [one["row"] for one in sets["exact"]["examples"]] == [1, 10]
    assert report["evaluation"] == {"test": 8}
    assert report["recall_at_threshold"] >= RECALL


@pytest.mark.parametrize(("drop", "left"), [(["exact"], 10), (["near"], 11), (["exact", "near"], 9)])
def test_overlapping_rows_are_dropped_and_the_rest_is_unchanged(
    leaky: dict[str, Path], tmp_path: Path, drop: list[str], left: int
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    config = {"files": ["sft.jsonl"], "drop": drop, "evaluation": {"test": "evaluation.jsonl"}, **SETTINGS}
    result = decontaminate.run(config | {"threshold": 0.4}, leaky, out, context(tmp_path))
    kept, given = (read_demonstrations(folder / "sft.jsonl") for folder in (out, leaky["training"]))
    assert len(kept) == left
    assert kept == [row for row in given if row in kept]  # in order, nothing altered
    gone = {row.prompt.text for row in given} - {row.prompt.text for row in kept}
    assert len(gone) == 12 - left
    assert all(any(word in text.lower() for word in ("evaluation",)) for text in gone)
    assert (out / "evaluation.jsonl").read_bytes() == (leaky["training"] / "evaluation.jsonl").read_bytes()
    assert not (out / "manifest.json").exists()
    card = json.loads((out / "card.json").read_text(encoding="utf-8"))
    assert card["kind"] == "world"
    assert card["decontaminated"]["files"] == {"sft.jsonl": {"rows": 12, "kept": left, "dropped": 12 - left}}
    assert result.metrics == {"dropped": {"sft.jsonl": 12 - left}}


def test_data_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    inputs = {"training": write(tmp_path / "a", "rl.jsonl", TESTS[:2])}
    inputs["evaluation.test"] = write(tmp_path / "b", "evaluation.jsonl", TESTS)
    config = {"files": ["rl.jsonl"], "drop": ["exact"], "evaluation": {"test": "evaluation.jsonl"}, **SETTINGS}
    with pytest.raises(ValueError, match="all 2 rows overlap with an evaluation set"):
        decontaminate.run(config, inputs, tmp_path, context(tmp_path))


# ---------------------------------------------------------------- the graph and the policy


def configured(*overrides: str) -> LabConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return load(compose("config", ["scale=touch", *overrides]))


@pytest.fixture(scope="module")
def config() -> LabConfig:
    return configured("experiment=reward_models")


def with_overlap(config: LabConfig, **changes: Any) -> LabConfig:
    return dataclasses.replace(config, overlap=OverlapConfig(**changes))


def test_the_check_sees_every_set_and_changes_no_key(config: LabConfig) -> None:
    graph = build_graph(config)
    (check,) = check_steps(config, graph.steps)
    assert set(check.config["training"]) >= {"base", "sft", "preference", "rl"}
    assert set(check.config["evaluation"]) == {"evaluation", "tuning", "benchmark"}
    assert {step.kind for step in Plan([check]).steps} == {"data", "benchmark_set", "overlap"}  # nothing is trained
    for changed in (dataclasses.replace(config, overlap=None), with_overlap(config, exact="report", threshold=0.3)):
        assert [step.key for step in build_graph(changed).steps] == [step.key for step in graph.steps]
    assert check_steps(dataclasses.replace(config, overlap=None), graph.steps) == []


def test_dropping_makes_other_data_that_all_training_takes(config: LabConfig) -> None:
    plain, graph = build_graph(config), build_graph(with_overlap(config, near="drop"))
    assert {graph.data[split].kind for split in ("base", "sft", "preference", "rl")} == {"decontaminate"}
    assert [graph.data[split].key for split in ("evaluation", "tuning")] == [
        plain.data[split].key for split in ("evaluation", "tuning")
    ]
    raw = {plain.data[split].key for split in ("base", "sft", "preference")}
    for step in Plan(graph.steps).steps:
        if step.kind not in ("decontaminate", "card"):
            assert not raw & set(step.input_keys.values()), step.title
    (check,) = check_steps(with_overlap(config, near="drop"), graph.steps)
    assert raw.isdisjoint(check.input_keys.values())  # what is trained on is what is checked
    assert graph.data["rl"].config["evaluation"]["benchmark"] == "items.jsonl"


def test_the_answers_of_a_file_are_dropped_with_its_prompts(config: LabConfig) -> None:
    counts = CountsConfig(preference=2, rl=2, evaluation=2, tuning=2)
    data = JsonlData("jsonl", "rows.jsonl", "question", "answer", "gsm8k", "math", 2, counts)
    splits = ("sft", "preference", "rl", "evaluation", "tuning")
    whole = Step("data", {"counts": dict.fromkeys(splits, 2)})
    settings = dataclasses.replace(with_overlap(config, exact="drop"), data=data)
    cleaned = decontaminated(settings, dict.fromkeys(splits, whole), None, Step)
    assert len({cleaned[split].key for split in ("sft", "preference", "rl")}) == 1
    assert cleaned["evaluation"] == cleaned["tuning"] == whole
    files = ["sft.jsonl", "preference.jsonl", "rl.jsonl", "preference_demonstrations.jsonl"]
    assert cleaned["sft"].config["files"] == files


def test_a_pool_that_is_contaminated_on_purpose_is_checked_itself(config: LabConfig) -> None:
    dirty = dataclasses.replace(config, preferences=dataclasses.replace(config.preferences, contamination=0.2))
    checks = check_steps(dirty, build_graph(dirty).steps)
    assert [list(check.config["training"]) for check in checks[1:]] == [["pool"]]
    cleaned = build_graph(with_overlap(dirty, exact="drop"))
    assert cleaned.pairs.kind == "decontaminate"
    assert cleaned.pairs.inputs["training"].kind == "preferences"


class FakeStages:
    """Data steps with a planted leak instead of the real ones."""

    @staticmethod
    def run(kind: str, config: Any, inputs: Any, out: Path, context: Context) -> Any:
        from lab.records import Ledger
        from lab.stages import run_stage
        from lab.store import StageResult

        if kind != "data":
            return run_stage(kind, config, inputs, out, context)
        for split in config["counts"]:
            write(out, f"{split}.jsonl", TESTS if split == "evaluation" else [*TRAIN, TESTS[0].title()])
        return StageResult(Ledger())


def run_fake(kind: str, config: Any, inputs: Any, out: Path, context: Context) -> Any:
    """What ``execute`` calls, by its dotted name."""
    return FakeStages.run(kind, config, inputs, out, context)


@pytest.fixture
def checked(config: LabConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[LabConfig, list[Step], Store]:
    """A run whose SFT data holds a copy of a test prompt, and what it would do."""
    sft = Step("data", {"counts": {"sft": 1}})
    evaluation = Step("data", {"counts": {"evaluation": 1}})
    run = dataclasses.replace(config.run, results=str(tmp_path / "results"), workers=0)
    real = gate.execute

    def execute(plan: Plan, store: Store, **given: Any) -> Any:
        return real(plan, store, **(given | {"runner": "tests.test_overlap.run_fake", "show": False}))

    monkeypatch.setattr(gate, "execute", execute)
    return dataclasses.replace(config, run=run), [sft, evaluation], Store(tmp_path / "store")


def test_a_planted_leak_stops_the_run(
    checked: tuple[LabConfig, list[Step], Store], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, steps, store = checked
    with pytest.raises(ConfigError) as error:
        gate.check_first(with_overlap(config), steps, store)
    assert str(error.value).startswith("overlap.exact: refuse")
    assert "1 of 9 rows of sft overlap (exact) with 1 prompts of evaluation" in str(error.value)
    assert repr(TESTS[0].title()) in str(error.value)
    assert "row 9" in str(error.value)
    stored = json.loads((tmp_path / "results" / "overlap.json").read_text(encoding="utf-8"))
    assert stored["training"]["sft"]["exact"] == 1
    assert "1 exact and 0 near of 9 training rows" in capsys.readouterr().out


@pytest.mark.parametrize("exact", ["report", "drop"])
def test_another_policy_lets_it_go_on_and_stores_the_number(
    checked: tuple[LabConfig, list[Step], Store], exact: str
) -> None:
    config, steps, store = checked
    report = gate.check_first(with_overlap(config, exact=exact), steps, store)
    assert report is not None
    assert report["training"]["sft"]["exact"] == 1
    assert report["policies"] == {"exact": exact, "near": "report"}
    assert gate.check_first(dataclasses.replace(config, overlap=None), steps, store) is None


def test_what_was_dropped_is_said() -> None:
    report = {"training": {"sft": {"rows": 1000, "exact": 0, "near": 3}}, "dropped": {"x": {"sft.jsonl": 2}}}
    assert gate.summary(report) == (
        "overlap with evaluation sets: 0 exact and 3 near of 1,000 training rows; 2 rows were dropped before"
    )


def test_settings_that_cannot_work_are_refused(config: LabConfig) -> None:
    for changes, message in (
        ({"threshold": 0.0}, r"overlap\.threshold: expected above 0 and up to 1, got 0\.0"),
        ({"threshold": 1.5}, r"overlap\.threshold: expected above 0 and up to 1, got 1\.5"),
        ({"permutations": 1}, r"overlap\.permutations: expected at least 2, got 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_filters(with_overlap(config, **changes))
    with pytest.raises(ConfigError, match=r"overlap\.exact: 'forbid' is not one of refuse, drop, report"):
        build(OverlapConfig, {"exact": "forbid"}, "overlap")


@pytest.mark.slow
def test_ten_of_two_thousand_prompts_are_found_among_a_hundred_thousand() -> None:
    rng = random.Random(0)
    vocabulary = [f"word{n}" for n in range(3000)]
    texts = (" ".join(rng.choices(vocabulary, k=rng.randint(8, 60))) for _ in itertools.count())
    evaluation = list(itertools.islice(texts, 2000))
    result = index({"evaluation": evaluation}).compare([*itertools.islice(texts, 99_990), *evaluation[:10]])
    assert result.sets["evaluation"]["exact"].rows == list(range(99_990, 100_000))
