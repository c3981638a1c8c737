"""Rule verifiers: (completion, gold) -> Verdict. They read text only: no model, no torch.

A new verifier is a module with `parse_gold` and `verify`, its line in VERIFIERS, and its cases. Verdicts become rewards
elsewhere; here ERROR and TIMEOUT are never "wrong".
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.records import Outcome, Verdict
from lab.verifiers import gsm8k, ifeval, math
from lab.verifiers.world import WORLD_VERIFIERS

__all__ = ["VERIFIERS", "BrokenVerifierError", "Verifier", "find_verifier", "verify", "verify_many"]

MAX_ERROR_RATE = 0.05
MIN_ERRORS = 3
"""Below this many errors only a batch in which nothing else happened counts as broken."""


@dataclass(frozen=True)
class Verifier:
    """Two functions. `parse_gold` turns a raw answer from a data file into a gold mapping, or raises ValueError: data
    is checked while it is loaded. `verify` judges a completion by it, and answers hostile text with a Verdict."""

    parse_gold: Callable[[Any], dict[str, Any]]
    verify: Callable[[str, Mapping[str, Any]], Verdict]


class BrokenVerifierError(RuntimeError):
    """Too many verdicts are ERROR: the verifier itself is at fault, and going on would read as an accuracy of 0."""


def _world_gold(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected the world's gold mapping, got {raw!r}")
    return dict(raw)


VERIFIERS: dict[str, Verifier] = {
    "gsm8k": Verifier(gsm8k.parse_gold, gsm8k.verify),
    "math": Verifier(math.parse_gold, math.verify),
    "ifeval": Verifier(ifeval.parse_gold, ifeval.verify),
    **{name: Verifier(_world_gold, function) for name, function in WORLD_VERIFIERS.items()},
}


def find_verifier(name: object) -> Verifier:
    """The verifier of this name. Raises ValueError naming the nearest and all known ones."""
    if isinstance(name, str) and name in VERIFIERS:
        return VERIFIERS[name]
    near = difflib.get_close_matches(str(name), VERIFIERS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"verifier: unknown name {name!r}{hint} (known: {', '.join(VERIFIERS)})")


def verify(completion: str, gold: Mapping[str, Any]) -> Verdict:
    """The verdict of the verifier that `gold["verifier"]` names.

    An exception inside the verifier is an ERROR verdict; a gold without a known verifier raises ValueError.
    """
    verifier = find_verifier(gold.get("verifier"))
    try:
        return verifier.verify(completion, gold)
    except Exception as error:
        return Verdict(Outcome.ERROR, f"{type(error).__name__}: {error}"[:500])


def verify_many(
    completions: Sequence[str], golds: Sequence[Mapping[str, Any]], max_error_rate: float = MAX_ERROR_RATE
) -> list[Verdict]:
    """One verdict a completion, in order.

    Raises ValueError for lengths that differ, BrokenVerifierError as soon as more than `max_error_rate` of the batch
    (and at least 3, or all) are ERROR.
    """
    if len(completions) != len(golds):
        raise ValueError(f"{len(completions)} completions but {len(golds)} golds")
    verdicts: list[Verdict] = []
    errors = 0
    for completion, gold in zip(completions, golds, strict=True):
        verdicts.append(verify(completion, gold))
        errors += verdicts[-1].outcome is Outcome.ERROR
        if errors and errors > max_error_rate * len(golds) and errors >= min(MIN_ERRORS, len(golds)):
            seen = next(verdict for verdict in verdicts if verdict.outcome is Outcome.ERROR)
            raise BrokenVerifierError(
                f"verifier {gold.get('verifier')!r}: {errors} errors in {len(verdicts)} of {len(golds)} verdicts"
                f" (at most {max_error_rate:.0%} are tolerated); the first: {seen.extracted}"
            )
    return verdicts
