"""What a reward source is asked once, on the preference artifact: its scale on SFT samples, and its agreement."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.data.jsonl import read_pairs
from lab.records import Completion, Pair, Prompt
from lab.rewards.judge import JudgeReward
from lab.rewards.source import RewardSource, write_normalisation

MAX_UNSCORED_SHARE = 0.1


def sides(pairs: Sequence[Pair]) -> tuple[list[Prompt], list[Completion], list[Completion]]:
    """Prompts, chosen and rejected completions (lengths in words) of N pairs."""
    chosen = [Completion(p.prompt.id, 0, p.chosen, len(p.chosen.split()), p.chosen_truncated) for p in pairs]
    rejected = [Completion(p.prompt.id, 1, p.rejected, len(p.rejected.split()), p.rejected_truncated) for p in pairs]
    return [pair.prompt for pair in pairs], chosen, rejected


def agreement(pairs: Sequence[Pair], margins: np.ndarray) -> dict[str, Any]:
    """``accuracy``: share of pairs with a margin (N,) strictly above 0 (a tie is a miss), also ``by_domain``.

    Pairs that could not be scored (NaN) are counted in ``unscored`` and left out of the shares: unknown is not wrong.
    None where no pair is left.
    """
    scored = ~np.isnan(margins)
    wins, domain = margins > 0, np.array([pair.prompt.domain for pair in pairs])

    def share(of: np.ndarray) -> float | None:
        return float(wins[of & scored].mean()) if (of & scored).any() else None

    return {
        "accuracy": share(np.ones(len(pairs), dtype=bool)),
        "held_out": len(pairs),
        "unscored": int((~scored).sum()),
        "by_domain": {name: share(domain == name) for name in sorted(set(domain.tolist()))},
    }


def measure(source: RewardSource, pairs: Path, out: Path) -> dict[str, Any]:
    """``normalisation.json`` and ``accuracy.json`` of an unnormalised ``source`` in ``out``; returns what they hold.

    A judge is also asked to compare the held-out pairs, in both orders (``compare``). Raises ValueError if more than
    ``MAX_UNSCORED_SHARE`` of the reference samples cannot be scored, or all score the same.
    """
    prompts, samples, _ = sides(read_pairs(pairs / "reference.jsonl"))
    raw = source.score(prompts, samples)
    known = raw[~np.isnan(raw)]
    if len(raw) - len(known) > MAX_UNSCORED_SHARE * len(raw):
        raise ValueError(f"reward.{source.name}: {len(raw) - len(known)} of {len(raw)} reference samples are unscored")
    normalisation = write_normalisation(out, known)

    held_out = read_pairs(pairs / "held_out.jsonl")
    asked, chosen, rejected = sides(held_out)
    accuracy = agreement(held_out, source.score(asked, chosen) - source.score(asked, rejected))
    if isinstance(source, JudgeReward):
        orders = source.orders(asked, chosen, rejected)
        accuracy["compare"] = {**agreement(held_out, orders.first - 0.5), **orders.report()}
    (out / "accuracy.json").write_text(json.dumps(accuracy, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return {**accuracy, **normalisation, "unscored_reference": len(raw) - len(known)}
