"""Seconds to score 10,000 world completions: batches by length against naive padding, from text to numbers.

    python benchmarks/bench_scoring.py [--threads 2]

The reward model has the demo's shape. Naive: rows in the order in which they come, each batch padded to its longest.
Both tokenize the same texts, run the same forward and return the same scores, which is asserted. In turns, the median
of the ratios.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from lab.models import ModelSize, encode_completions, encode_prompts, load_classifier, new_policy
from lab.records import Completion, Prompt
from lab.rewards.classifier import ClassifierReward
from lab.world.domains import Demonstrator, demonstrate
from lab.world.generate import prompts as world_prompts
from lab.world.vocabulary import tokenizer as world_tokenizer

SHAPE = ModelSize(hidden=64, layers=3, heads=4, intermediate=192)
HABITS = Demonstrator(careful=0.5, slip=0.05, opener=0.5, closer=0.5, filler=0.15)


def artifact(folder: Path) -> Path:
    """A reward model with random weights, on disk as a trained one is."""
    tokenizer = world_tokenizer()
    new_policy(SHAPE, tokenizer, 0).save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    model, tokenizer = load_classifier(folder / "policy", new_head_seed=1)
    model.save_pretrained(folder / "reward_model" / "final")
    tokenizer.save_pretrained(folder / "reward_model" / "final")
    (folder / "reward_model" / "normalisation.json").write_text('{"shift": 0.0, "scale": 1.0}')
    return folder / "reward_model"


@torch.no_grad()
def naive(source: ClassifierReward, prompts: list[Prompt], completions: list[Completion], batch: int) -> np.ndarray:
    """The obvious loop: batches in the order given, padded to the longest of each."""
    begin = encode_prompts(source.tokenizer, [prompt.text for prompt in prompts])
    end = encode_completions(source.tokenizer, [one.text for one in completions])
    rows = [a + b for a, b in zip(begin, end, strict=True)]
    pad = source.tokenizer.pad_token_id
    scores = []
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        width = max(map(len, some))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in some])
        scores.append(source.model(input_ids=ids, attention_mask=(ids != pad).long()).logits.squeeze(-1).numpy())
    return np.concatenate(scores)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--completions", type=int, default=10_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--batch", type=int, default=256)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    prompts = world_prompts("train", given.completions, 0, distinct=False)
    rng = random.Random(0)
    texts = [demonstrate(rng, prompt, HABITS) for prompt in prompts]
    completions = [
        Completion(prompt.id, 0, text, len(text.split()) + 1) for prompt, text in zip(prompts, texts, strict=True)
    ]
    with TemporaryDirectory() as folder:
        source = ClassifierReward(artifact(Path(folder)), "cpu")
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(given.repetitions + 1):  # the first is warm-up
            began = time.perf_counter()
            by_length = source.score(prompts, completions)
            middle = time.perf_counter()
            as_given = naive(source, prompts, completions, given.batch)
            ours.append(middle - began)
            theirs.append(time.perf_counter() - middle)
        assert np.abs(by_length - as_given).max() < 1e-4, "the two ways disagree"
    ratio = statistics.median(a / b for a, b in zip(ours[1:], theirs[1:], strict=True))
    print("| completions | threads | by length, s | naive padding, s | by length over naive |\n|---|---|---|---|---|")
    print(
        f"| {given.completions:,} | {given.threads} | {statistics.median(ours[1:]):.2f} "
        f"| {statistics.median(theirs[1:]):.2f} | {ratio:.2f} |"
    )


if __name__ == "__main__":
    main()
