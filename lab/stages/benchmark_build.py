"""A benchmark of reward models from the completions of several models (RewardBench 2, arXiv 2506.01937).

Completions are labelled by votes, of a verifier, of judges, of the majority of the completions and of people; prompts
with a correct and three incorrect ones become best-of-four items, Ties prompts become groups. The truth that the
world knows measures the labels; it makes them only where the config says so.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq

from lab.benchmarks import building
from lab.benchmarks.building import REJECTED, Built, Candidate, Entry, Lengths, Vote
from lab.benchmarks.building_files import read_completion_file
from lab.benchmarks.building_files import stated_answer as stated_in_file
from lab.benchmarks.items import write_items
from lab.benchmarks.scoring import longest_is_right, words
from lab.data.card import write_card
from lab.data.jsonl import read_prompts
from lab.data.sources import file_digest
from lab.models import pick_device
from lab.records import Completion, Ledger, Outcome, Prompt, derive_seed
from lab.rewards import load_reward
from lab.rewards.judge import JudgeReward, grade_scores
from lab.store import Context, StageResult
from lab.verifiers import verify_many
from lab.world.unseen import OPEN
from lab.world.unseen import stated_answer as stated_in_world

ANSWERS, JUDGE, DIFFICULTY = "answers-", "judge-", "difficulty."
"""What the names of inputs begin with: completions of a model, a judge, the source that measures difficulty."""


@dataclass(frozen=True)
class Drawn:
    """One completion as a model wrote it. ``given``: what people said of it; ``truth``: what the world knows."""

    prompt_id: str
    model: str
    text: str
    truncated: bool = False
    given: Vote = None
    truth: Vote = None


@dataclass(frozen=True)
class Voted:
    """A different completion of a prompt with everything that was said of it."""

    candidate: Candidate
    votes: Mapping[str, Vote]


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``benchmark`` (its name; "world": the prompts are the world's), ``labels``, ``gold_domains`` (may be
    absent), ``deciders``, ``judge`` and ``difficulty`` (RewardConfigs or None), ``judge_right``, ``judge_wrong``,
    ``majority_share``, ``lengths``, ``min_difficulty``, ``seed`` (all as in BuildingConfig), ``completions``: digest of
    the file in ``context.resources["completions"]``, or None.
    Inputs: "prompts"; "answers-NAME": a pool of each model; "judge-0.judge", ... ; "difficulty.NAME".

    Writes ``items.jsonl``, ``built.jsonl`` (item -> models of its completions, whether mislabelled) and ``card.json``.
    Raises ValueError, with the funnel, if no item can be built.
    """
    prompts = read_prompts(inputs["prompts"] / "prompts.jsonl")
    groups = json.loads((inputs["prompts"] / "groups.json").read_text(encoding="utf-8"))
    device = pick_device(context.resources.get("device", "auto"))
    drawn, counts = _answers(config, prompts, inputs, context)
    context.progress(1, 4, f"{len(drawn)} completions")
    voters, spent = _voters(config, inputs, device)
    voted, answered = _vote(config, prompts, drawn, voters)
    context.progress(2, 4, "labelled")

    entries = []
    for prompt in prompts:
        group, side = groups.get(prompt.id, (None, None))
        entries.append(Entry(prompt, tuple(one.candidate for one in voted[prompt.id]), group, side))
    labelled = [entry for entry in entries if entry.correct and len(entry.incorrect) >= needed(entry)]
    hard = _difficult(config, labelled, inputs, device)
    context.progress(3, 4, "putting items together")
    both: dict[Lengths, list[Built]] = {how: _assemble(hard, config, how) for how in ("any", "balanced")}
    built = both[cast(Lengths, config["lengths"])]
    before = json.loads((inputs["prompts"] / "card.json").read_text(encoding="utf-8"))
    funnel = {
        **before["funnel"],
        "answered": _domains(prompt for prompt in prompts if answered[prompt.id] > REJECTED),
        "labelled": _domains(entry.prompt for entry in labelled),
        "difficult": _domains(entry.prompt for entry in hard),
        "items": _domains(one.item.prompt for one in built),
    }
    if not built:
        raise ValueError(f"benchmark: no item could be built: {json.dumps(funnel)}")
    write_items(out / "items.jsonl", [one.item for one in built])
    _write_built(out / "built.jsonl", built)
    every = [one for found in voted.values() for one in found]
    card = {
        "benchmark": config["benchmark"],
        "labels": config["labels"],
        "gold_domains": list(config.get("gold_domains", ())),
        "deciders": config["deciders"],
        "lengths": config["lengths"],
        "funnel": funnel,
        "dropped": before["dropped"],
        "compared_with": before["compared_with"],
        "completions": {"drawn": len(drawn), "different": len(every), **counts},
        "voters": _by_domain(prompts, voted, _voter_quality),
        "disagreement": _by_domain(prompts, voted, lambda found: building.disagreement([one.votes for one in found])),
        "models": {"all": building.shares(built), **{d: building.shares(own) for d, own in _per_domain(built)}},
        "four_models": building.different_models(built),
        "mislabelled_items": _errors(built),
        "longer_wins_words": {how: _longer_wins(found) for how, found in both.items()},
        "longer_rejected": _length_ranks(built),
    }
    write_card(out, card, "Benchmark built from models' completions")
    context.progress(4, 4, f"{len(built)} items")
    by_gold = [p.id for p in prompts if config["labels"] == "gold" or p.domain in config.get("gold_domains", ())]
    gold = sum(len(voted[prompt_id]) for prompt_id in by_gold)
    ledger = Ledger(judge_calls=spent(), gold_looks=gold, verifier_calls=sum("verifier" in one.votes for one in every))
    return StageResult(
        ledger,
        {"items": len(built), "four_models": card["four_models"], "mislabelled": card["mislabelled_items"]["all"]},
    )


def needed(entry: Entry) -> int:
    """Incorrect completions that a prompt needs: three, in Ties one."""
    return 1 if entry.group is not None else REJECTED


def _assemble(entries: Sequence[Entry], config: Mapping[str, Any], lengths: Lengths) -> list[Built]:
    settings = (config["benchmark"], lengths, config["seed"])
    return building.best_of_four(entries, *settings) + building.ties(entries, *settings)


# ---------------------------------------------------------------- completions


def _answers(
    config: Mapping[str, Any], prompts: Sequence[Prompt], inputs: Mapping[str, Path], context: Context
) -> tuple[list[Drawn], dict[str, Any]]:
    """The finished completions, and counts: by model, how many were unfinished, empty, or of other prompts.

    An unfinished completion is no candidate: a benchmark's items do not say that a text was cut.
    """
    found: list[Drawn] = []
    for name in sorted(name for name in inputs if name.startswith(ANSWERS)):
        model = name.removeprefix(ANSWERS)
        for row in pq.read_table(inputs[name] / "pool.parquet").to_pylist():
            truth = None if row["gold_correct"] is None else row["gold_correct"] == 1
            found.append(Drawn(row["prompt_id"], model, row["completion"], row["truncated"], truth=truth))
    others = 0
    if config["completions"] is not None:
        path = Path(context.resources["completions"])
        if file_digest(path) != config["completions"]:
            raise ValueError(f"{path}: changed since the plan was made")
        rows, others = read_completion_file(path, prompts)
        found += [Drawn(row.prompt_id, row.model, row.text, row.truncated, row.correct) for row in rows]
    kept = [one for one in found if not one.truncated and one.text.strip()]
    return kept, {
        "by_model": dict(sorted(Counter(one.model for one in kept).items())),
        "unfinished": sum(one.truncated for one in found),
        "empty": sum(not one.truncated and not one.text.strip() for one in found),
        "of_other_prompts": others,
    }


# ---------------------------------------------------------------- votes


Voters = Mapping[str, Any]
"""Voter -> function of (prompts, texts) that gives a vote for each."""


def _voters(config: Mapping[str, Any], inputs: Mapping[str, Path], device: Any) -> tuple[Voters, Any]:
    """The verifier and the judges, where ``deciders`` name them, and a function that counts the judges' calls."""
    named = {name for group in config["deciders"] for name in group}
    voters: dict[str, Any] = {}
    judges: list[JudgeReward] = []
    if "verifier" in named:
        voters["verifier"] = _verified
    if "judge" in named:
        numbers = sorted({name.split(".")[0] for name in inputs if name.startswith(JUDGE)})
        for number in numbers or [JUDGE]:  # an endpoint has no artifact
            own = {k.removeprefix(f"{number}."): path for k, path in inputs.items() if k.startswith(f"{number}.")}
            judges.append(cast(JudgeReward, load_reward(config["judge"], own, device)))

        def judged(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Vote]:
            grades_JN = np.stack([grades(judge, prompts, texts) for judge in judges])
            return judge_votes(grades_JN, config["judge_right"], config["judge_wrong"])

        voters["judge"] = judged
    return voters, lambda: sum(judge.calls for judge in judges)


def _verified(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Vote]:
    known = [line for line, prompt in enumerate(prompts) if prompt.verifier is not None]
    votes: list[Vote] = [None] * len(prompts)
    found = verify_many([texts[line] for line in known], [prompts[line].gold for line in known])
    for line, verdict in zip(known, found, strict=True):
        if verdict.outcome not in (Outcome.TIMEOUT, Outcome.ERROR):
            votes[line] = verdict.correct
    return votes


def grades(judge: JudgeReward, prompts: Sequence[Prompt], texts: Sequence[str]) -> np.ndarray:
    """What a judge gives each completion, on a scale from 0 to 1 (N,): P(good) of its two verdicts, or the expected
    grade between the lowest and the highest; NaN without a verdict."""
    completions = [Completion(p.id, 0, text, words(text)) for p, text in zip(prompts, texts, strict=True)]
    raw_N = grade_scores(judge.backend.grade(prompts, completions), judge.backend.grades)
    if judge.backend.grades is not None:
        low, high = min(judge.backend.grades), max(judge.backend.grades)
        return (raw_N - low) / (high - low)
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-raw_N))


def judge_votes(grades_JN: np.ndarray, right: float, wrong: float) -> list[Vote]:
    """The vote of J judges on N completions: right where every one gives at least ``right``, wrong where every one
    gives less than ``wrong``, none between, where they differ, or without a verdict."""
    return [
        True if (column >= right).all() else False if (column < wrong).all() else None
        for column in np.asarray(grades_JN).T
    ]


def _vote(
    config: Mapping[str, Any], prompts: Sequence[Prompt], drawn: Sequence[Drawn], voters: Voters
) -> tuple[dict[str, list[Voted]], Counter[str]]:
    """Prompt id -> its different completions with votes and labels; and how many different ones each prompt has."""
    of = {prompt.id: prompt for prompt in prompts}
    texts: dict[tuple[str, str], list[Drawn]] = {}
    for one in drawn:
        texts.setdefault((one.prompt_id, one.text), []).append(one)
    keys = list(texts)
    asked = [of[prompt_id] for prompt_id, _ in keys]
    cast_votes = {name: voter(asked, [text for _, text in keys]) for name, voter in voters.items()}
    world = config["benchmark"] == "world"
    stated = {
        key: stated_in_world(prompt, key[1]) if world else stated_in_file(prompt, key[1])
        for key, prompt in zip(keys, asked, strict=True)
    }
    said: dict[str, list[str | None]] = {}
    for one in drawn:  # as often as it was said
        said.setdefault(one.prompt_id, []).append(stated[one.prompt_id, one.text])
    majority = {name: building.majority_answer(answers, config["majority_share"]) for name, answers in said.items()}
    voted: dict[str, list[Voted]] = {prompt.id: [] for prompt in prompts}
    for line, key in enumerate(keys):
        prompt, writers, answer = asked[line], texts[key], stated[key]
        votes: dict[str, Vote] = {name: found[line] for name, found in cast_votes.items()}
        if not (world and prompt.domain in OPEN):
            known = majority[prompt.id] is not None and answer is not None
            votes["majority"] = answer == majority[prompt.id] if known else None
        given = {one.given for one in writers} - {None}
        if any(one.given is not None for one in writers):
            votes["given"] = given.pop() if len(given) == 1 else None
        truth = writers[0].truth
        by_gold = config["labels"] == "gold" or prompt.domain in config.get("gold_domains", ())
        right = truth if by_gold else building.combine(votes, config["deciders"])
        # Several may have written it: it counts for one of them, drawn by lot.
        names = sorted({one.model for one in writers})
        model = names[derive_seed("writer", config["seed"], *key) % len(names)]
        voted[prompt.id].append(Voted(Candidate(model, key[1], answer, right, truth), votes))
    return voted, Counter({name: len(found) for name, found in voted.items()})


def _difficult(
    config: Mapping[str, Any], entries: Sequence[Entry], inputs: Mapping[str, Path], device: Any
) -> list[Entry]:
    """The prompts that are hard enough for the source of ``difficulty``; all without one."""
    if config["difficulty"] is None or not entries:
        return list(entries)
    own = {name.removeprefix(DIFFICULTY): path for name, path in inputs.items() if name.startswith(DIFFICULTY)}
    source = load_reward(config["difficulty"], own, device)
    lines = [(entry.prompt, one) for entry in entries for one in entry.candidates]
    found = source.score(
        [prompt for prompt, _ in lines],
        [Completion(prompt.id, 0, one.text, words(one.text)) for prompt, one in lines],
    )
    scores = {(p.id, one.text): float(score) for (p, one), score in zip(lines, found, strict=True)}
    if any(math.isnan(score) for score in scores.values()):
        raise ValueError("build_benchmark.difficulty: this source cannot score every completion")
    return [
        entry
        for entry in entries
        if building.difficulty(entry, {one.text: scores[entry.prompt.id, one.text] for one in entry.candidates})
        >= config["min_difficulty"]
    ]


# ---------------------------------------------------------------- the card


def _domains(prompts: Iterable[Prompt]) -> dict[str, int]:
    return dict(Counter(prompt.domain for prompt in prompts))


def _per_domain(built: Sequence[Built]) -> list[tuple[str, list[Built]]]:
    domains = dict.fromkeys(one.item.subset for one in built)
    return [(domain, [one for one in built if one.item.subset == domain]) for domain in domains]


def _by_domain(prompts: Sequence[Prompt], voted: Mapping[str, Sequence[Voted]], measure: Any) -> dict[str, Any]:
    """Domain -> what ``measure`` makes of its different completions."""
    found: dict[str, list[Voted]] = {}
    for prompt in prompts:
        found.setdefault(prompt.domain, []).extend(voted[prompt.id])
    return {domain: measure(own) for domain, own in found.items()}


def _voter_quality(found: Sequence[Voted]) -> dict[str, Any]:
    """Voter (and "label") -> votes, how many of them for right, how many differ from the truth (where it is known)."""
    with_label = [replace(one, votes={**one.votes, "label": one.candidate.right}) for one in found]
    names = dict.fromkeys(name for one in with_label for name in one.votes)
    measured = {}
    for name in names:
        cast_votes = [(vote, one.candidate.truth) for one in with_label if (vote := one.votes.get(name)) is not None]
        errors = building.error_rate([None if truth is None else vote != truth for vote, truth in cast_votes])
        measured[name] = {"votes": len(cast_votes), "right": sum(vote for vote, _ in cast_votes), "errors": errors}
    truths = [one.candidate.truth for one in found if one.candidate.truth is not None]
    return {"completions": len(found), "truly_right": sum(truths) if truths else None, **measured}


def _errors(built: Sequence[Built]) -> dict[str, Any]:
    every = {"all": list(built), **dict(_per_domain(built))}
    return {name: building.error_rate([one.mislabelled for one in own]) for name, own in every.items()}


def _longer_wins(built: Sequence[Built]) -> dict[str, float]:
    every = {"all": list(built), **dict(_per_domain(built))}
    return {
        name: sum(longest_is_right(one.item, words) for one in own) / len(own) for name, own in every.items() if own
    }


def _length_ranks(built: Sequence[Built]) -> dict[str, list[int]]:
    """Domain -> best-of-four items with 0, 1, 2, 3 rejected completions longer than the chosen, in words."""
    ranks: dict[str, list[int]] = {}
    for one in built:
        if one.item.kind == "best_of":
            chosen, rejected = one.candidates[0], one.candidates[1:]
            counts = ranks.setdefault(one.item.subset, [0] * (REJECTED + 1))
            counts[sum(other.length > chosen.length for other in rejected)] += 1
    return ranks


def _write_built(path: Path, built: Sequence[Built]) -> None:
    from lab.data.jsonl import write_rows

    write_rows(
        path,
        (
            {"item": one.item.id, "models": [c.model for c in one.candidates], "mislabelled": one.mislabelled}
            for one in built
        ),
    )
