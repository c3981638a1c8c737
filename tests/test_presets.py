"""Every preset of simulated annotators states the better one as often as its numbers promise."""

from __future__ import annotations

import math
import random
from functools import cache
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

from lab.__main__ import CONF
from lab.config import PreferencesConfig, build
from lab.data.card import describe
from lab.data.labelling import Candidate, Labeller, couples, label_couples, labelling_rng
from lab.records import Completion, Prompt, derive_seed
from lab.stages.preferences import demonstrator
from lab.world.domains import demonstrate
from lab.world.generate import prompts
from lab.world.gold import STYLE_WEIGHT, utility

PRESETS = ("perfect", "expert", "noisy", "hh_like", "ultrafeedback_like", "crowd")


@cache
def settings(preset: str, *overrides: str) -> PreferencesConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        raw = hydra.compose("config", [f"preferences={preset}", "sizes.pairs=2000", *overrides])
    return build(PreferencesConfig, OmegaConf.to_container(raw.preferences, resolve=True))


@cache
def pool() -> list[tuple[Prompt, list[Candidate]]]:
    """Completions by demonstrators of all strengths."""
    made = []
    for prompt in prompts("preference", 400, 0, distinct=True):
        found = []
        for sample, strength in enumerate((0.0, 0.4, 0.8, 1.0)):
            rng = random.Random(derive_seed("test", prompt.id, sample))
            text = demonstrate(rng, prompt, demonstrator(strength))
            parts = utility(prompt, text)
            completion = Completion(prompt.id, sample, text, len(text.split()))
            found.append(Candidate(completion, parts.total, STYLE_WEIGHT * parts.style))
        made.append((prompt, found))
    return made


@cache
def labelled(preset: str, *overrides: str) -> tuple[dict[str, Any], Labeller]:
    """The card of pairs labelled as the preset asks."""
    asked = settings(preset, *overrides)
    rng = labelling_rng(asked)
    done = label_couples(couples(pool(), rng), asked, rng)
    known = {(prompt.id, one.completion.text): one for prompt, found in pool() for one in found}
    sides = [(known[p.prompt.id, p.chosen], known[p.prompt.id, p.rejected]) for p in done.pairs]
    margins = [a.utility - b.utility for a, b in sides]  # type: ignore[operator]
    labeller = Labeller(asked)

    def right(number: int) -> float:
        a, b = sides[number] if margins[number] > 0 else sides[number][::-1]
        return labeller.p_first(done.pairs[number].prompt, a, b)

    votes = [[vote for _, vote in own] for own in done.votes] if asked.labels_per_pair > 1 else []
    return describe(done.pairs, margins, right=right, votes=votes), labeller


@pytest.mark.parametrize("preset", PRESETS)
def test_measured_agreement_is_what_was_requested(preset: str) -> None:
    card, labeller = labelled(preset)
    measured, expected = card["agreement_with_gold"], card["expected_agreement"]
    assert card["pairs"] == labeller.limit
    assert 0.5 < expected <= 1.0
    assert measured == pytest.approx(expected, abs=3.5 * math.sqrt(expected * (1 - expected) / card["pairs"]) + 1e-12)


def test_the_presets_differ_as_their_names_say() -> None:
    agreement = {preset: labelled(preset)[0]["expected_agreement"] for preset in PRESETS}
    assert agreement["perfect"] == 1.0
    assert agreement["noisy"] < agreement["hh_like"] < agreement["expert"]
    assert agreement["hh_like"] < agreement["crowd"]
    assert agreement["hh_like"] < agreement["ultrafeedback_like"]


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5])
def test_a_perfect_annotators_agreement_is_one_less_the_flips(rate: float) -> None:
    card, _ = labelled("perfect", f"preferences.flip_rate={rate}")
    assert card["expected_agreement"] == pytest.approx(1 - rate)


def test_three_of_a_crowd_agree_more_with_gold_than_one() -> None:
    one = labelled("crowd", "preferences.labels_per_pair=1")[0]
    three = labelled("crowd")[0]
    assert three["expected_agreement"] > one["expected_agreement"] + 0.02
    assert (one["pairs"], three["pairs"]) == (2000, 666)
    assert 0 < three["kappa"] < 1
