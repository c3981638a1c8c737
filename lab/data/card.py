"""The card that is written beside every set of data, and what it says of preference pairs: counts, agreement with the
truth, lengths, agreement between annotators, duplicates and leakage, of simulated, stated and filtered pairs alike."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.data.sources import normalised_id
from lab.records import Pair

FILES = ("card.json", "card.md")
"""A card's files, in the folder of its data."""

SHOWN = 8
"""``card.md`` shows so many entries of a list; ``card.json`` has them all."""

PFirst = Callable[[int], float]
"""Of pair i: the probability, by the labeller's own definition, that it states the truly better one."""


def write_card(folder: Path, card: Mapping[str, Any], title: str, text: str | None = None) -> None:
    """``card.json`` and ``card.md`` in ``folder``; ``text`` instead of a line a fact. Raises ValueError for NaN."""
    data = json.dumps(card, indent=2, allow_nan=False) + "\n"
    (folder / "card.json").write_text(data, encoding="utf-8")
    (folder / "card.md").write_text(text or _page(title, list(_facts(card))), encoding="utf-8")


def read_card(folder: Path) -> dict[str, Any]:
    """The card of the data in ``folder``; empty where it has none."""
    path = folder / "card.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _facts(card: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, str]]:
    """One fact a line: "lengths, chosen, mean", "12.5"."""
    for key, value in card.items():
        name = f"{inside}, {key}" if inside else str(key)
        match value:
            case Mapping():
                yield from _facts(value, name)
            case list() | tuple():
                more = f", and {len(value) - SHOWN:,} more" if len(value) > SHOWN else ""
                yield name, (", ".join(map(_said, value[:SHOWN])) or "none") + more
            case _:
                yield name, _said(value)


def _said(value: Any) -> str:
    match value:
        case None:
            return "not known"
        case bool() | str():
            return str(value).replace("|", "\\|").replace("\n", " ")
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.4g}"
        case _:
            return json.dumps(value).replace("|", "\\|")


def _page(title: str, lines: Sequence[tuple[str, str]], note: str = "") -> str:
    body = "\n".join(f"| {name} | {text} |" for name, text in lines)
    return f"# {title}\n\n| | |\n| --- | --- |\n{body}\n" + (f"\n{note}\n" if note else "")


def describe(
    pairs: Sequence[Pair],
    margins: Sequence[float | None],
    *,
    right: PFirst | None = None,
    votes: Sequence[Sequence[bool]] = (),
    evaluation: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Any]:
    """The card of ``pairs``.

    ``margins``: true utility of chosen less rejected, None where nobody knows. ``right``: as ``PFirst``, for the
    agreement to be expected of what was asked for. ``votes`` of each pair, where there were several: says that the
    chosen one is better. ``evaluation``: split -> texts of its prompts, for leakage. Shares carry 95% Wilson intervals.

    ``agreement_with_gold`` leaves out pairs whose two sides are equally good; their number is ``ties_by_gold``.
    """
    if len(margins) != len(pairs):
        raise ValueError(f"card: {len(pairs)} pairs and {len(margins)} margins")
    known = [(i, margin) for i, margin in enumerate(margins) if margin is not None]
    decided = [(i, margin) for i, margin in known if margin]
    longer = [_words(pair.chosen) - _words(pair.rejected) for pair in pairs]
    card: dict[str, Any] = {
        "pairs": len(pairs),
        "prompts": len({pair.prompt.id for pair in pairs}),
        "different_pairs": len({(pair.prompt.id, *sorted((pair.chosen, pair.rejected))) for pair in pairs}),
        "annotators": dict(sorted(Counter(pair.annotator for pair in pairs).items())),
        "domains": dict(sorted(Counter(pair.prompt.domain for pair in pairs).items())),
        "levels": {str(level): n for level, n in sorted(Counter(pair.prompt.level for pair in pairs).items())},
        "chosen_words": _spread([_words(pair.chosen) for pair in pairs]),
        "rejected_words": _spread([_words(pair.rejected) for pair in pairs]),
        **_share("longer_chosen", sum(n > 0 for n in longer), sum(n != 0 for n in longer)),
        **_share("agreement_with_gold", sum(margin > 0 for _, margin in decided), len(decided)),
        "ties_by_gold": len(known) - len(decided),
        "unknown_to_gold": len(pairs) - len(known),
        "mean_margin": statistics.fmean(abs(margin) for _, margin in known) if known else None,
        "expected_agreement": statistics.fmean(right(i) for i, _ in decided) if right and decided else None,
    }
    card["duplicates"] = card["pairs"] - card["different_pairs"]
    if votes:
        card |= _between(votes)
    if evaluation is not None:
        card["leakage"] = {name: _leaked(pairs, texts) for name, texts in evaluation.items()}
    return card


def _between(votes: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """Agreement of the annotators with each other: the share p of couples of them who say the same of one pair, and
    kappa = (p - 1/2) / (1/2).

    The two sides of a pair have no names, so two who guess agree half of the time (Bennett, Alpert and Goldstein 1954);
    Fleiss' kappa comes to the same where each side is called first as often. The chosen side must not stand for a
    category there: the majority chose it.
    """
    same = sum(_agreeing(own) for own in votes)
    couples = sum(len(own) * (len(own) - 1) // 2 for own in votes)
    found = _share("agreement_between_annotators", same, couples)
    return {"labels": sum(map(len, votes)), "kappa": 2 * same / couples - 1, **found}


def _agreeing(votes: Sequence[bool]) -> int:
    yes = sum(votes)
    no = len(votes) - yes
    return (yes * (yes - 1) + no * (no - 1)) // 2


def _leaked(pairs: Sequence[Pair], texts: Collection[str]) -> int:
    """Pairs whose prompt is among these texts, up to case and white space."""
    held = {normalised_id(text) for text in texts}
    return sum(normalised_id(pair.prompt.text) in held for pair in pairs)


def _share(name: str, hits: int, count: int) -> dict[str, float | None]:
    if not count:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    from scipy.stats import binomtest  # a second to import, and most stages only write a card

    found = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return {name: hits / count, f"{name}_low": float(found.low), f"{name}_high": float(found.high)}


def _words(text: str) -> int:
    return len(text.split())


def _spread(lengths: Sequence[int]) -> dict[str, float]:
    if not lengths:
        return {}
    return {
        "minimum": min(lengths),
        "median": float(statistics.median(lengths)),
        "mean": round(statistics.fmean(lengths), 2),
        "maximum": max(lengths),
    }


def markdown(card: Mapping[str, Any], title: str) -> str:
    """The card for people: one line a fact, in the order of the card."""

    def share(name: str) -> str:
        if card.get(name) is None:
            return "not known"
        return f"{card[name]:.1%} [{card[f'{name}_low']:.1%}, {card[f'{name}_high']:.1%}]"

    def listed(counts: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {n:,}" for name, n in counts.items()) or "none"

    expected = card["expected_agreement"]
    lines = [
        ("pairs", f"{card['pairs']:,}, of which {card['duplicates']:,} repeat others; on {card['prompts']:,} prompts"),
        ("labelled by", listed(card["annotators"])),
        ("domains", listed(card["domains"])),
        ("levels", listed(card["levels"])),
        ("agreement with gold", f"{share('agreement_with_gold')}; {card['ties_by_gold']:,} pairs are equal by gold"),
        ("agreement to be expected", "not known" if expected is None else f"{expected:.1%}"),
        ("the longer one is chosen", share("longer_chosen")),
        ("words of the chosen", listed(card["chosen_words"])),
        ("words of the rejected", listed(card["rejected_words"])),
    ]
    if "kappa" in card:
        text = f"{share('agreement_between_annotators')} of two on a pair; kappa {card['kappa']:.2f}"
        lines.append(("agreement between annotators", text))
    if "leakage" in card:
        lines.append(("pairs on prompts of other splits", listed(card["leakage"])))
    return _page(title, lines, "[Shares with 95% Wilson intervals.]")
