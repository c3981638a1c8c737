"""``python -m experiments.gates experiments/results/health``: is the embedded world healthy enough to argue with?

Each gate is an inequality on the tables of ``experiment=health``; the page that this prints is docs/health.md. A gate
that fails says so, and the command then exits with 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Gate:
    """A claim, what was measured, and whether it holds."""

    claim: str
    measured: str
    holds: bool


def gates(summary: Mapping[str, Any], accuracies: Sequence[float]) -> list[Gate]:
    """Every gate, from a ``summary.json`` and the held-out accuracies of its reward models."""
    table: dict[tuple[str, str], Line] = {(line["arm"], line["domain"]): line for line in summary["table"]}
    checked = [d for arm, d in table if arm == "sft" and d not in ("all", "verifiable", "unverifiable")]
    checked = [d for d in checked if table["sft", d]["pass1"] is not None]

    start = {domain: table["sft", domain]["pass1"] for domain in checked}
    found = [
        Gate(
            "SFT pass@1 lies between 25% and 65% in each verifiable domain",
            ", ".join(f"{domain} {value:.0%}" for domain, value in start.items()),
            all(0.25 <= value <= 0.65 for value in start.values()),
        )
    ]
    verifiable, rest = table["grpo_verifier", "verifiable"], table["grpo_verifier", "unverifiable"]
    found.append(
        Gate(
            "GRPO × verifier raises pass@1 by at least 20 points",
            f"{verifiable['pass1_delta']:+.0%} {_interval(verifiable, 'pass1_delta', '.0%')}",
            verifiable["pass1_delta_low"] >= 0.2,
        )
    )
    found.append(
        Gate(
            "... and changes the domains without a verifier by little: less than a third of what it gives the others",
            f"gold {rest['gold_delta']:+.3f} against {verifiable['gold_delta']:+.3f}",
            abs(rest["gold_delta"]) < verifiable["gold_delta"] / 3,
        )
    )
    for arm, name in (("ppo_rm", "PPO × RM"), ("dpo", "DPO")):
        line = table[arm, "all"]
        found.append(
            Gate(
                f"{name} raises gold, interval above 0",
                f"{line['gold_delta']:+.3f} {_interval(line, 'gold_delta', '+.3f')}",
                line["gold_delta_low"] > 0,
            )
        )
    pairs = _by_seed(summary, "ppo_rm", "ppo_rm_low_kl")
    found.append(
        Gate(
            "The same PPO with a tenth of the KL coefficient is hacked: on every seed, proxy up and gold down",
            "; ".join(
                f"seed {seed}: proxy {held['proxy']:.2f} -> {loose['proxy']:.2f}, gold {held['gold']:.2f} -> "
                f"{loose['gold']:.2f}, KL {held['kl_nats']:.1f} -> {loose['kl_nats']:.1f} nats"
                for seed, (held, loose) in pairs.items()
            ),
            len(pairs) > 1
            and all(loose["proxy"] > held["proxy"] and loose["gold"] < held["gold"] for held, loose in pairs.values()),
        )
    )
    found.append(
        Gate(
            "Reward models agree with gold on at least 75% of held-out pairs (annotators with 10% flips)",
            ", ".join(f"{value:.1%}" for value in accuracies),
            min(accuracies) >= 0.75,
        )
    )
    line = table["grpo_random", "all"]
    found.append(
        Gate(
            "A random reward raises nothing",
            f"{line['gold_delta']:+.3f} {_interval(line, 'gold_delta', '+.3f')}",
            line["gold_delta_low"] <= 0,
        )
    )
    return found


def _by_seed(summary: Mapping[str, Any], *arms: str) -> dict[int, tuple[Line, ...]]:
    """The lines of several arms over all domains, for every seed that all of them have."""
    lines = {(line["arm"], line["seed"]): line for line in summary["seeds"] if line["domain"] == "all"}
    seeds = sorted({seed for _, seed in lines})
    return {
        seed: tuple(lines[arm, seed] for arm in arms) for seed in seeds if all((arm, seed) in lines for arm in arms)
    }


def _interval(line: Line, name: str, style: str) -> str:
    return f"[{line[f'{name}_low']:{style}}, {line[f'{name}_high']:{style}}]"


def main(folder: Path) -> int:
    """Print the page; 0 if every gate holds."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    sources = json.loads((folder / "headline.json").read_text(encoding="utf-8"))["sources"]
    seeds = max(line["n_seeds"] for line in summary["table"])
    found = gates(summary, list(sources["reward_model_accuracy"].values()))
    print("# Health of the embedded world\n")
    print(f"Printed by `python -m experiments.gates` from the tables of `experiment={sources['experiment']}`: {seeds}")
    print("policy seeds an arm, each with a reward model of its own; 95% intervals.\n")
    print("| gate | measured | |\n|---|---|---|")
    for gate in found:
        print(f"| {gate.claim} | {gate.measured} | {'holds' if gate.holds else '**fails**'} |")
    return 0 if all(gate.holds for gate in found) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
