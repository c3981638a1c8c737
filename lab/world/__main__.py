"""``python -m lab.world``: look at the world's prompts, demonstrations and what the gold utility says of them."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator

from lab.records import DOMAINS, Prompt, derive_seed
from lab.world.domains import LEVELS, PROMPTS, Demonstrator, demonstrate
from lab.world.gold import GoldParts, utility

SAMPLE = Demonstrator(careful=0.5, slip=0.05, opener=0.5, closer=0.5, filler=0.15)
"""The habits of the SFT demonstrators in ``conf/data/world.yaml``."""


def examples(domain: str, count: int, seed: int, level: int | None = None) -> Iterator[tuple[Prompt, str, GoldParts]]:
    """``count`` prompts of a domain, levels in turn unless one is given, each with a demonstration and its gold."""
    rng = random.Random(derive_seed("examples", domain, seed))
    for turn in range(count):
        prompt = PROMPTS[domain](rng, level or LEVELS[turn % len(LEVELS)])
        completion = demonstrate(rng, prompt, SAMPLE)
        yield prompt, completion, utility(prompt, completion)


def main() -> None:
    """Print samples as Markdown tables, one a domain."""
    parser = argparse.ArgumentParser(prog="python -m lab.world", description="Samples of the embedded world.")
    parser.add_argument("--domain", choices=DOMAINS, help="one domain only")
    parser.add_argument("--level", type=int, choices=LEVELS, help="one level of difficulty only")
    parser.add_argument("--count", type=int, default=3, help="examples a domain (default 3)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for domain in [given.domain] if given.domain else DOMAINS:
        print(
            f"### {domain}\n\n| level | prompt | a demonstration | correct | style | gold |\n|---|---|---|---|---|---|"
        )
        for prompt, text, parts in examples(domain, given.count, given.seed, given.level):
            print(
                f"| {prompt.level} | {prompt.text} | {text} | {parts.correct:g} | {parts.style:g} | {parts.total:g} |"
            )
        print()


if __name__ == "__main__":
    main()
