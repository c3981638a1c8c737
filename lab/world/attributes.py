"""What an annotator can rate in an answer besides liking it: attributes in [0, 1], and their noisy ratings.

A rating = the attribute as it is + Gaussian noise of standard deviation ``rating_noise``, independent for each
completion and attribute. It is not clipped: a rating beyond the scale keeps the noise's mean at 0, and so the
regression on ratings unbiased.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lab.records import Completion, Prompt, derive_seed
from lab.world.gold import utility
from lab.world.vocabulary import CLOSER, FILLERS, OPENERS

ATTRIBUTES = ("correctness", "opening", "closing", "tidiness", "brevity")
"""correctness: the domain's main term of the gold utility; opening and closing: with a courtesy; tidiness: 1 without
fillers and misplaced courtesies, half of that for each; brevity: 1 for no words, half of that for every ten."""


def true_attributes(prompt: Prompt, completion: Completion) -> dict[str, float]:
    """The attributes of a completion, without noise, each in [0, 1].

    Raises ValueError for a prompt that is not the world's own: its attributes are not known.
    """
    try:
        correct = utility(prompt, completion.text, completion.truncated).correct
    except KeyError as error:
        raise ValueError(
            f"prompt {prompt.id} ({prompt.domain}): attributes are known in the world only; its gold has no {error}"
        ) from None
    tokens = completion.text.split()
    opened = bool(tokens) and tokens[0] in OPENERS
    closed = len(tokens) > 1 and tokens[-1] == CLOSER
    courtesies = sum(token in OPENERS or token == CLOSER for token in tokens)
    clutter = sum(token in FILLERS for token in tokens) + courtesies - opened - closed
    return {
        "correctness": correct,
        "opening": float(opened),
        "closing": float(closed),
        "tidiness": 0.5**clutter,
        "brevity": 0.5 ** (len(tokens) / 10),
    }


def rate(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    attributes: Sequence[str],
    noise: float,
    seed: int,
) -> np.ndarray:
    """Ratings (N, K) of N completions by K attributes. A completion's rating depends on no other completion."""
    ratings = np.zeros((len(prompts), len(attributes)))
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        true = true_attributes(prompt, completion)
        for column, name in enumerate(attributes):
            key = derive_seed("rating", seed, prompt.id, completion.sample, completion.text, name)
            ratings[row, column] = true[name] + noise * np.random.Generator(np.random.Philox(key=key)).standard_normal()
    return ratings
