"""The preference pool: completions sampled on-policy from the SFT checkpoint, labelled in pairs.

Labels come from a simulated annotator, who sees the gold utility through temperature, flips and a taste for length, or
from a rule verifier, who prefers correct over wrong and says nothing of the rest. The held-out pairs carry the true
order: they measure a reward model against gold, and no training reads them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from lab.config import PreferencesConfig, build
from lab.costs import forward_flops
from lab.data.jsonl import read_demonstrations, read_prompts, write_records, write_samples
from lab.models import decode_completions, encode_prompts, end_token_ids, load_policy, parameter_count, pick_device
from lab.records import Completion, Ledger, Pair, Prompt, derive_seed
from lab.rewards.truth import GoldReward, VerifierReward
from lab.sampling import sample
from lab.store import Context, StageResult
from lab.world.annotators import Annotator


@dataclass(frozen=True)
class Candidate:
    """A completion in the pool and its true utility (None: a verifier could not say)."""

    completion: Completion
    utility: float | None


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``preferences`` (PreferencesConfig), ``max_new_tokens``, ``gold`` ("world" or "verifier").
    Inputs: "sft" (the policy), "data".

    Writes ``pairs.jsonl``, ``held_out.jsonl`` (true order), ``reference.jsonl`` (SFT samples on which a reward model is
    normalised), ``samples.jsonl`` (all completions of the other prompts), ``card.json``. Raises ValueError if no pair
    could be labelled.
    """
    settings = build(PreferencesConfig, config["preferences"], "preferences")
    device = pick_device(context.resources.get("device", "auto"))
    policy, tokenizer = load_policy(inputs["sft"] / "final", device, context.resources.get("dtype", "float32"))
    prompts = read_prompts(inputs["data"] / "preference.jsonl")
    each = range(settings.samples_per_prompt)
    rows = [(prompt, number) for prompt in prompts for number in each]
    prompt_ids = encode_prompts(tokenizer, [prompt.text for prompt, _ in rows])
    samples = sample(
        policy,
        prompt_ids,
        seeds=[derive_seed("preferences", settings.seed, prompt.id, number) for prompt, number in rows],
        max_new_tokens=config["max_new_tokens"],
        temperature=settings.sampling_temperature,
        eos_token_id=end_token_ids(policy, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        batch_size=context.resources.get("batch", 256),
    )
    context.progress(1, 2, "labelling")
    texts = decode_completions(tokenizer, [one.ids for one in samples])
    completions = [
        Completion(prompt.id, number, text, len(one.ids), one.truncated)
        for (prompt, number), one, text in zip(rows, samples, texts, strict=True)
    ]
    owners = [prompt for prompt, _ in rows]
    if settings.demonstrations:
        for demonstration in read_demonstrations(inputs["data"] / "preference_demonstrations.jsonl"):
            owners.append(demonstration.prompt)
            length = len(tokenizer(demonstration.completion)["input_ids"])
            completions.append(Completion(demonstration.prompt.id, len(each), demonstration.completion, length))

    source = GoldReward() if config["gold"] == "world" else VerifierReward()
    pool: dict[str, tuple[Prompt, list[Candidate]]] = {prompt.id: (prompt, []) for prompt in prompts}
    for owner, completion, utility in zip(owners, completions, source.score(owners, completions), strict=True):
        pool[owner.id][1].append(Candidate(completion, None if utility != utility else float(utility)))
    pairs, held_out = label(list(pool.values()), settings)
    if not pairs:
        raise ValueError(
            f"{inputs['data'] / 'preference.jsonl'}: no pair of the {len(completions)} completions could be labelled "
            f"by {settings.labels}: all alike (try preferences.samples_per_prompt or preferences.demonstrations)"
        )
    write_records(out / "pairs.jsonl", pairs)
    write_records(out / "held_out.jsonl", held_out)
    reference = [(prompt, one) for (prompt, number), one in zip(rows, completions, strict=False) if number == 0]
    write_records(out / "reference.jsonl", [Pair(p, c.text, c.text, "reference", c.truncated) for p, c in reference])
    kept_out = {pair.prompt.id for pair in held_out}
    owned = zip(owners, completions, strict=True)
    write_samples(out / "samples.jsonl", [(prompt, one) for prompt, one in owned if prompt.id not in kept_out])
    card = describe(pairs, pool)
    (out / "card.json").write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    generated, read = sum(len(one.ids) for one in samples), sum(map(len, prompt_ids))
    ledger = Ledger(
        preference_labels=len(pairs) if settings.labels == "annotator" else 0,
        verifier_calls=len(completions) if settings.labels == "verifier" else 0,
        prompt_tokens=read,
        generated_tokens=generated,
        sampling_flops=forward_flops(parameter_count(policy), read + generated),
    )
    return StageResult(ledger, card)


def label(pool: Sequence[tuple[Prompt, list[Candidate]]], settings: PreferencesConfig) -> tuple[list[Pair], list[Pair]]:
    """Training pairs as the annotator states them, and held-out pairs in their true order, on different prompts.

    The prompts take turns, so that few labels are spread over many prompts. Completions with the same text make no
    pair; held-out pairs have different utilities.
    """
    rng = random.Random(derive_seed("annotator", settings.annotator, settings.seed))
    annotator = Annotator(settings.annotator, settings.temperature, settings.flip_rate, settings.length_bias)
    choices = []
    for prompt, candidates in pool:
        couples = [(a, b) for a, b in combinations(candidates, 2) if a.completion.text != b.completion.text]
        rng.shuffle(couples)
        choices.append((prompt, couples))
    reserved = _reserve(choices, settings.held_out)
    held_out = [
        _pair(prompt, a, b, a.utility > b.utility, "gold")
        for prompt, a, b in _in_turns(choices[len(choices) - reserved :])
        if a.utility is not None and b.utility is not None and a.utility != b.utility
    ]
    pairs: list[Pair] = []
    for prompt, a, b in _in_turns(choices[: len(choices) - reserved]):
        if len(pairs) == settings.pairs:
            break
        if a.utility is None or b.utility is None or (settings.labels == "verifier" and a.utility == b.utility):
            continue
        first, strength = a.utility > b.utility, 1.0
        if settings.labels == "annotator":
            seen = (a.utility, b.utility), (a.completion.length, b.completion.length)
            first, strength = annotator.prefers_first(rng, *seen), annotator.strength(*seen)
        pairs.append(_pair(prompt, a, b, first, settings.annotator, strength))
    return pairs, held_out[: settings.held_out]


def _reserve(choices: Sequence[tuple[Prompt, list[Any]]], wanted: int) -> int:
    """How many prompts, from the end, to keep for held-out pairs: enough for ``wanted``, a quarter at the most."""
    found = 0
    for count, (_, couples) in enumerate(reversed(choices)):
        if found >= wanted or count >= len(choices) // 4:
            return count
        found += sum(a.utility is not None and b.utility is not None and a.utility != b.utility for a, b in couples)
    return 0


def _in_turns(choices: Sequence[tuple[Prompt, list[Any]]]) -> list[tuple[Prompt, Candidate, Candidate]]:
    longest = max((len(couples) for _, couples in choices), default=0)
    return [(prompt, *couples[turn]) for turn in range(longest) for prompt, couples in choices if turn < len(couples)]


def _pair(prompt: Prompt, a: Candidate, b: Candidate, first: bool, annotator: str, strength: float = 0.0) -> Pair:
    chosen, rejected = (a.completion, b.completion) if first else (b.completion, a.completion)
    return Pair(prompt, chosen.text, rejected.text, annotator, chosen.truncated, rejected.truncated, strength)


def describe(pairs: Sequence[Pair], pool: Mapping[str, tuple[Prompt, list[Candidate]]]) -> dict[str, Any]:
    """Counts, measured agreement with the truth (ties left out), and how often the longer completion was chosen."""
    utility = {(id_, one.completion.text): one.utility for id_, (_, found) in pool.items() for one in found}
    margins = [utility[p.prompt.id, p.chosen] - utility[p.prompt.id, p.rejected] for p in pairs]  # type: ignore[operator]
    decided = [margin for margin in margins if margin != 0]
    lengths = [len(pair.chosen.split()) - len(pair.rejected.split()) for pair in pairs]
    uneven = [difference for difference in lengths if difference]
    return {
        "pairs": len(pairs),
        "agreement_with_gold": sum(margin > 0 for margin in decided) / len(decided) if decided else None,
        "ties_by_gold": len(margins) - len(decided),
        "longer_chosen": sum(difference > 0 for difference in uneven) / len(uneven) if uneven else None,
        "domains": {d: sum(p.prompt.domain == d for p in pairs) for d in sorted({p.prompt.domain for p in pairs})},
    }
