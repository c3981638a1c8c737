"""The card of a set of preference pairs: what is in it, and how far it agrees with the truth and with itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.config import PreferencesConfig, build
from lab.data.card import describe, markdown, write_card
from lab.data.jsonl import read_pairs, read_prompts, read_rows, read_samples
from lab.data.labelling import Candidate, Labeller
from lab.records import Completion, Ledger, Pair
from lab.rewards.truth import VerifierReward
from lab.store import Context, StageResult
from lab.world.gold import STYLE_WEIGHT, utility


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``title``, ``gold`` ("world", "verifier" or "none"), ``preferences`` (of the pool that a labeller made,
    else None), ``splits``. Inputs: "pairs", and for each of ``splits`` a data artifact of that name with its prompts.

    Writes ``card.json`` and ``card.md``; its metrics are the card. Costs nothing and is charged to nobody.
    """
    pairs = read_pairs(inputs["pairs"] / "pairs.jsonl")
    lengths = {}
    if (inputs["pairs"] / "samples.jsonl").is_file():
        samples = read_samples(inputs["pairs"] / "samples.jsonl")
        lengths = {(prompt.id, one.text): one.length for prompt, one in samples}
    sides = [_sides(pair, lengths, config["gold"]) for pair in pairs]
    margins = [None if a.utility is None or b.utility is None else a.utility - b.utility for a, b in sides]
    labeller = None
    if config["preferences"] is not None:
        labeller = Labeller(build(PreferencesConfig, config["preferences"], "preferences"))

    def right(number: int) -> float:
        assert labeller is not None
        (chosen, rejected), margin = sides[number], margins[number]
        better, worse = (chosen, rejected) if margin and margin > 0 else (rejected, chosen)
        return labeller.p_first(pairs[number].prompt, better, worse)

    votes = []
    if (inputs["pairs"] / "votes.jsonl").is_file():
        votes = [[bool(vote) for _, vote in row["votes"]] for _, row in read_rows(inputs["pairs"] / "votes.jsonl")]
    card = describe(
        pairs,
        margins,
        right=right if labeller is not None else None,
        votes=votes,
        evaluation={
            split: [prompt.text for prompt in read_prompts(inputs[split] / f"{split}.jsonl")]
            for split in config["splits"]
        },
    )
    write_card(out, card, config["title"], markdown(card, config["title"]))
    return StageResult(Ledger(), card)


def _sides(pair: Pair, lengths: Mapping[tuple[str, str], int], gold: str) -> tuple[Candidate, Candidate]:
    """Chosen and rejected with their true utilities, as annotators saw them."""
    sides = []
    for text, truncated in ((pair.chosen, pair.chosen_truncated), (pair.rejected, pair.rejected_truncated)):
        length = lengths.get((pair.prompt.id, text), len(text.split()))
        completion = Completion(pair.prompt.id, 0, text, length, truncated)
        if gold == "world":
            parts = utility(pair.prompt, text, truncated)
            sides.append(Candidate(completion, parts.total, STYLE_WEIGHT * parts.style))
        elif gold == "verifier":
            score = float(VerifierReward().score([pair.prompt], [completion])[0])
            sides.append(Candidate(completion, None if score != score else score))
        else:
            sides.append(Candidate(completion, None))
    return sides[0], sides[1]
