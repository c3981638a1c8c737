"""A preference pool again, with the pairs that a rule keeps: by verifier, by reward model or judge, by a vote."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lab.artifact import MANIFEST
from lab.config import AnswerRule, FilterConfig, ScoreRule, VerifierRule, VoteRule, build, plain
from lab.data.card import FILES, read_card, write_card
from lab.data.filters import (
    by_answers,
    by_margin,
    by_share,
    by_verifier,
    by_vote,
    describe,
    extract,
    keep,
    lots,
    majorities,
    matched_random,
)
from lab.data.jsonl import read_pairs, read_samples, write_records
from lab.models import pick_device
from lab.online.watch import kinds_of
from lab.records import Completion, Ledger, Pair, Prompt
from lab.rewards import PairwiseSource, RewardSource, load_reward
from lab.rewards.judge import JudgeReward
from lab.rewards.truth import GoldReward, VerifierReward
from lab.store import Context, StageResult

Floats = NDArray[np.float64]


@dataclass
class Sides:
    """The two sides of N pairs as completions, and what asking about them cost."""

    pairs: Sequence[Pair]
    prompts: list[Prompt] = field(init=False)
    chosen: list[Completion] = field(init=False)
    rejected: list[Completion] = field(init=False)
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        self.prompts = [pair.prompt for pair in self.pairs]
        self.chosen = [_completion(pair.prompt, 0, pair.chosen, pair.chosen_truncated) for pair in self.pairs]
        self.rejected = [_completion(pair.prompt, 1, pair.rejected, pair.rejected_truncated) for pair in self.pairs]

    def scores(self, source: RewardSource) -> tuple[Floats, Floats]:
        """The source's scores (N,) of the chosen and of the rejected sides."""
        scores = source.score([*self.prompts, *self.prompts], [*self.chosen, *self.rejected])
        return scores[: len(self.pairs)], scores[len(self.pairs) :]

    def margins(self, source: RewardSource) -> Floats:
        """(N,): how far the source puts the chosen side ahead. A judge is asked to compare: P(chosen better) - 0.5."""
        if isinstance(source, PairwiseSource):
            return source.compare(self.prompts, self.chosen, self.rejected) - 0.5
        chosen, rejected = self.scores(source)
        return chosen - rejected

    def charge(self, reward: Mapping[str, Any], source: RewardSource) -> None:
        """Put what the source was asked on the ledger: both sides of every pair, once."""
        asked = Counter(kinds_of(reward))
        verified = sum(prompt.verifier is not None for prompt in self.prompts)
        self.ledger += Ledger(
            verifier_calls=2 * verified * asked["verifier"],
            gold_looks=2 * len(self.pairs) * asked["gold"],
            judge_calls=source.calls if isinstance(source, JudgeReward) else 0,
        )


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``filter`` (FilterConfig), ``gold`` ("world" or "verifier"; only reported). Inputs: "pairs" (a preference
    artifact), and what the rule's sources need (of voter NAME: "NAME.reward_model" and so on).

    Writes the preference artifact again: ``pairs.jsonl`` with what is kept, in its order, and every other file
    unchanged. ``card.json`` is the pool's own, with "filter" added (what was kept, what was left out and why, the
    agreement with gold before and after). Raises ValueError if nothing is kept.
    """
    settings = build(FilterConfig, config["filter"], "filter")
    pairs = read_pairs(inputs["pairs"] / "pairs.jsonl")
    sides = Sides(pairs)
    device = pick_device(context.resources.get("device", "auto"))
    context.progress(0, 2, f"{len(pairs)} pairs")
    judged = _judge(settings, sides, inputs, device)
    domains = [pair.prompt.domain for pair in pairs]
    kept = keep(judged, settings.unknown)
    if settings.control:
        kept = matched_random(kept, domains, lots(pairs, settings.seed, "control"))
    if not kept.any():
        raise ValueError(
            f"{inputs['pairs'] / 'pairs.jsonl'}: filter.rule: {settings.rule.kind} keeps none of {len(pairs)} pairs"
        )
    context.progress(1, 2, "writing")
    gold = sides.scores(GoldReward() if config["gold"] == "world" else VerifierReward())
    report = {"config": plain(settings), **describe(pairs, judged, kept, *gold)}

    write_records(out / "pairs.jsonl", [pair for pair, stays in zip(pairs, kept, strict=True) if stays])
    for path in sorted(inputs["pairs"].iterdir()):
        if path.is_file() and path.name not in ("pairs.jsonl", *FILES, MANIFEST):
            shutil.copyfile(path, out / path.name)
    card = {**read_card(inputs["pairs"]), "filter": report}
    write_card(out, card, "Preference pairs, filtered")
    context.progress(2, 2)
    before, after = report["before"], report["after"]
    metrics = {"pairs": after["pairs"], "pairs_before": before["pairs"], "agreement_with_gold": after["agreement"],
               "agreement_before": before["agreement"]}  # fmt: skip
    return StageResult(sides.ledger, metrics)


def _judge(settings: FilterConfig, sides: Sides, inputs: Mapping[str, Path], device: torch.device) -> Floats:
    """(N,): 1, 0 or NaN, as ``lab.data.filters`` has it."""
    match settings.rule:
        case VerifierRule():
            verifier = VerifierReward()
            sides.charge({"kind": "verifier"}, verifier)
            return by_verifier(*sides.scores(verifier))
        case ScoreRule() as rule:
            margins = _margins(plain(rule.reward), inputs, sides, device)
            if not rule.share:
                return by_margin(margins, rule.margin)
            domains = [prompt.domain for prompt in sides.prompts]
            return by_share(margins, domains, rule.share, lots(sides.pairs, settings.seed, "ties"))
        case VoteRule() as rule:
            votes = []
            for name, voter in rule.voters.items():
                own = {key.removeprefix(f"{name}."): path for key, path in inputs.items() if key.startswith(f"{name}.")}
                votes.append(_margins(plain(voter), own, sides, device))
            return by_vote(np.stack(votes), rule.least)
        case AnswerRule():
            return _by_answers(sides, inputs["pairs"] / "samples.jsonl", settings.seed)


def _margins(reward: Mapping[str, Any], inputs: Mapping[str, Path], sides: Sides, device: torch.device) -> Floats:
    source = load_reward(reward, inputs, device)
    margins = sides.margins(source)
    sides.charge(reward, source)
    return margins


def _by_answers(sides: Sides, samples: Path, seed: int) -> Floats:
    read = read_samples(samples)
    answers: dict[str, list[str | None]] = {prompt.id: [] for prompt in sides.prompts}
    extracted = extract([prompt for prompt, _ in read], [completion.text for _, completion in read])
    for (prompt, _), answer in zip(read, extracted, strict=True):
        if prompt.id in answers:
            answers[prompt.id].append(answer)
    majority = majorities(answers, seed)
    return by_answers(
        extract(sides.prompts, [one.text for one in sides.chosen]),
        extract(sides.prompts, [one.text for one in sides.rejected]),
        [majority[prompt.id] for prompt in sides.prompts],
    )


def _completion(prompt: Prompt, number: int, text: str, truncated: bool) -> Completion:
    return Completion(prompt.id, number, text, len(text.split()), truncated)
