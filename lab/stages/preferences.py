"""The preference pool: completions of the preference prompts, labelled in pairs.

Completions are sampled on-policy from the SFT checkpoint; a share of them may come from demonstrators instead. Labels
come from simulated annotators, who see the gold utility through temperature, flips and biases, or from a rule verifier,
who prefers correct over wrong and says nothing of the rest. The held-out pairs are always on-policy and carry the true
order: they measure a reward model against gold, and no training reads them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab.config import PreferencesConfig, build
from lab.costs import forward_flops
from lab.data.card import write_card
from lab.data.jsonl import read_demonstrations, read_prompts, write_records, write_rows, write_samples
from lab.data.labelling import (
    RATING_WEIGHTS,
    Candidate,
    couples,
    label_couples,
    labelling_rng,
    reserve,
    true_pairs,
)
from lab.data.quality import choose_prompts, is_on_policy, plant, repeat
from lab.models import decode_completions, encode_prompts, end_token_ids, load_policy, parameter_count, pick_device
from lab.records import Completion, Ledger, Pair, Prompt, derive_seed
from lab.rewards.truth import VerifierReward
from lab.sampling import sample
from lab.store import Context, StageResult
from lab.world.domains import Demonstrator, demonstrate
from lab.world.gold import STYLE_WEIGHT, utility

POLICY = "policy"
"""The source of a completion that the SFT checkpoint sampled."""


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``preferences`` (PreferencesConfig), ``max_new_tokens``, ``gold`` ("world" or "verifier").
    Inputs: "sft" (the policy), "data"; "evaluation" (its prompts) where ``contamination`` is not 0.

    Writes ``pairs.jsonl``, ``held_out.jsonl`` (true order), ``reference.jsonl`` (SFT samples on which a reward model is
    normalised), ``samples.jsonl`` (all completions of the other prompts), ``card.json``, and ``votes.jsonl`` where
    several annotators label a pair. Raises ValueError if no pair could be labelled.
    """
    writer = _Writer(config, inputs, context)
    settings = writer.settings
    prompts = read_prompts(inputs["data"] / "preference.jsonl")
    owners, completions = writer.sampled(prompts)
    context.progress(1, 2, "labelling")
    if settings.demonstrations:
        for demonstration in read_demonstrations(inputs["data"] / "preference_demonstrations.jsonl"):
            owners.append(demonstration.prompt)
            completions.append(
                writer.written(demonstration.prompt, settings.samples_per_prompt, demonstration.completion)
            )
    pool = _by_prompt(prompts, owners, writer.truth(owners, completions, POLICY))

    rng = labelling_rng(settings)
    choices = couples(pool, rng)
    count = reserve(choices, settings.held_out)
    held_out = true_pairs(choices[len(choices) - count :], settings.held_out)
    training, choices = pool[: len(pool) - count], choices[: len(choices) - count]
    kept = _eligible([prompt for prompt, _ in training], settings)
    if len(kept) < len(training):
        training = [item for item in training if item[0].id in kept]
        choices = [item for item in choices if item[0].id in kept]
    if settings.on_policy < 1:
        training = [(prompt, writer.mixed(prompt, found)) for prompt, found in training]
        choices = couples(training, rng)
    labelled = label_couples(choices, settings, rng)
    if not labelled.pairs:
        raise ValueError(
            f"{inputs['data'] / 'preference.jsonl'}: no pair of the {len(completions)} completions could be labelled "
            f"by {settings.labels}: all alike (try preferences.samples_per_prompt, preferences.demonstrations, or a "
            "wider preferences.min_margin to max_margin)"
        )
    pairs = repeat(labelled.pairs, settings.duplicates, settings.seed)
    if settings.contamination:
        wanted = round(settings.contamination * len(pairs))
        pairs = plant(pairs, writer.leaked(inputs["evaluation"] / "evaluation.jsonl", wanted), settings.contamination)
    write_records(out / "pairs.jsonl", pairs)
    write_records(out / "held_out.jsonl", held_out)
    reference = [one for one in zip(owners, completions, strict=True) if one[1].sample == 0]
    write_records(out / "reference.jsonl", [Pair(p, c.text, c.text, "reference", c.truncated) for p, c in reference])
    kept_out = {pair.prompt.id for pair in held_out}
    owned = list(zip(owners, completions, strict=True))
    if len(kept) < len(pool) - count or settings.on_policy < 1:
        owned = [(prompt, one.completion) for prompt, found in training for one in found]
    write_samples(out / "samples.jsonl", [(prompt, one) for prompt, one in owned if prompt.id not in kept_out])
    if settings.labels_per_pair > 1:
        write_rows(out / "votes.jsonl", ({"votes": [list(vote) for vote in own]} for own in labelled.votes))
    card = describe(labelled.pairs, {prompt.id: (prompt, found) for prompt, found in training})
    write_card(out, card, "Preference pool")
    return StageResult(writer.ledger(len(labelled.pairs), len(completions)), card)


def _eligible(prompts: Sequence[Prompt], settings: PreferencesConfig) -> set[str]:
    found = choose_prompts(
        prompts, levels=settings.levels, domains=settings.domains, coverage=settings.coverage, seed=settings.seed
    )
    return {prompt.id for prompt in found}


class _Writer:
    """Writes completions and knows their true worth; counts what that took."""

    def __init__(self, config: Mapping[str, Any], inputs: Mapping[str, Path], context: Context) -> None:
        self.settings = build(PreferencesConfig, config["preferences"], "preferences")
        self.max_new_tokens, self.resources = config["max_new_tokens"], context.resources
        self.truth = _world if config["gold"] == "world" else _verified
        device = pick_device(self.resources.get("device", "auto"))
        dtype = self.resources.get("dtype", "float32")
        self.policy, self.tokenizer = load_policy(inputs["sft"] / "final", device, dtype)
        self.generated = self.read = 0
        strengths = self.settings.strengths
        self.demonstrators = [(f"strength {strength:g}", demonstrator(strength)) for strength in strengths]

    def sampled(self, prompts: Sequence[Prompt], name: str = "preferences") -> tuple[list[Prompt], list[Completion]]:
        """The policy's own samples, ``samples_per_prompt`` of each prompt, and whose they are."""
        settings = self.settings
        rows = [(prompt, number) for prompt in prompts for number in range(settings.samples_per_prompt)]
        prompt_ids = encode_prompts(self.tokenizer, [prompt.text for prompt, _ in rows])
        samples = sample(
            self.policy,
            prompt_ids,
            seeds=[derive_seed(name, settings.seed, prompt.id, number) for prompt, number in rows],
            max_new_tokens=self.max_new_tokens,
            temperature=settings.sampling_temperature,
            eos_token_id=end_token_ids(self.policy, self.tokenizer),
            pad_token_id=self.tokenizer.pad_token_id,
            batch_size=self.resources.get("batch", 256),
        )
        self.generated += sum(len(one.ids) for one in samples)
        self.read += sum(map(len, prompt_ids))
        texts = decode_completions(self.tokenizer, [one.ids for one in samples])
        completions = [
            Completion(prompt.id, number, text, len(one.ids), one.truncated)
            for (prompt, number), one, text in zip(rows, samples, texts, strict=True)
        ]
        return [prompt for prompt, _ in rows], completions

    def written(self, prompt: Prompt, sample: int, text: str) -> Completion:
        """A completion that somebody else wrote, measured in this policy's tokens."""
        return Completion(prompt.id, sample, text, len(self.tokenizer(text)["input_ids"]))

    def mixed(self, prompt: Prompt, found: Sequence[Candidate]) -> list[Candidate]:
        """The policy's samples of a prompt, of which those that are not to be on-policy are replaced: the demonstrators
        take turns, with a chance of their own for each sample."""
        mixed = []
        for one in found:
            number = one.completion.sample
            if is_on_policy(prompt, number, self.settings.on_policy, self.settings.seed):
                mixed.append(one)
                continue
            rng = random.Random(derive_seed("demonstrator", self.settings.seed, prompt.id, number))
            source, who = self.demonstrators[rng.randrange(len(self.demonstrators))]
            other = self.written(prompt, number, demonstrate(rng, prompt, who))
            mixed += self.truth([prompt], [other], source)
        return mixed

    def leaked(self, path: Path, wanted: int) -> list[Pair]:
        """Pairs on evaluation prompts, written and labelled as all others are."""
        prompts = read_prompts(path)[:wanted]
        owners, completions = self.sampled(prompts, "contamination")
        rng = random.Random(derive_seed("contamination", self.settings.annotator, self.settings.seed))
        pool = _by_prompt(prompts, owners, self.truth(owners, completions, POLICY))
        return label_couples(couples(pool, rng), replace(self.settings, pairs=wanted, budget=0), rng).pairs

    def ledger(self, pairs: int, completions: int) -> Ledger:
        """What the pool cost. The two ratings of every attribute are paid for each completion once."""
        labels = self.settings.labels
        return Ledger(
            preference_labels=pairs * self.settings.labels_per_pair if labels == "annotator" else 0,
            ratings=completions * len(RATING_WEIGHTS) if labels == "ratings" else 0,
            verifier_calls=completions if labels == "verifier" else 0,
            prompt_tokens=self.read,
            generated_tokens=self.generated,
            sampling_flops=forward_flops(parameter_count(self.policy), self.read + self.generated),
        )


def demonstrator(strength: float) -> Demonstrator:
    """Who writes completions of a strength, from 0 (careless, curt, rambling) to 1 (careful and courteous)."""
    weakness = 1 - strength
    return Demonstrator(careful=strength, slip=0.3 * weakness, opener=strength, closer=strength, filler=0.4 * weakness)


def _world(owners: Sequence[Prompt], completions: Sequence[Completion], source: str) -> list[Candidate]:
    parts = [utility(prompt, one.text, one.truncated) for prompt, one in zip(owners, completions, strict=True)]
    return [
        Candidate(one, part.total, STYLE_WEIGHT * part.style, source)
        for one, part in zip(completions, parts, strict=True)
    ]


def _verified(owners: Sequence[Prompt], completions: Sequence[Completion], source: str) -> list[Candidate]:
    scores = VerifierReward().score(owners, completions)
    return [
        Candidate(one, None if score != score else float(score), source=source)
        for one, score in zip(completions, scores, strict=True)
    ]


def _by_prompt(
    prompts: Sequence[Prompt], owners: Sequence[Prompt], candidates: Sequence[Candidate]
) -> list[tuple[Prompt, list[Candidate]]]:
    pool: dict[str, tuple[Prompt, list[Candidate]]] = {prompt.id: (prompt, []) for prompt in prompts}
    for owner, candidate in zip(owners, candidates, strict=True):
        pool[owner.id][1].append(candidate)
    return list(pool.values())


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
