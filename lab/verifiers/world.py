"""Rule verifiers of the embedded world. They read text and gold only: they know nothing of style or of policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lab.records import Outcome, Verdict


def verify_answer(completion: str, gold: Mapping[str, Any]) -> Verdict:
    """``answer X`` must name the gold answer, once.

    Two different answers are INCORRECT whatever they are: a policy that lists candidates must not be paid.
    """
    tokens = completion.split()
    answers = [tokens[i + 1] for i, token in enumerate(tokens[:-1]) if token == "answer"]
    if not answers:
        return Verdict(Outcome.UNPARSEABLE)
    right = all(answer == gold["answer"] for answer in answers)
    return Verdict(Outcome.CORRECT if right else Outcome.INCORRECT, " ".join(answers))


def verify_list(completion: str, gold: Mapping[str, Any]) -> Verdict:
    """``count`` different members, in ``order`` (along ``members`` or back) and from ``first`` where they are set.

    Numbering, separators and the courtesy words in ``ignore`` do not count; any other word spoils the list.
    """
    ignore, members = set(gold["ignore"]), list(gold["members"])
    items = [token for token in completion.split() if token not in ignore and not token.isdigit() and token != ";"]
    if not items:
        return Verdict(Outcome.UNPARSEABLE)
    right = (
        len(items) == gold["count"]
        and len(set(items)) == len(items)
        and all(item in members for item in items)
        and gold.get("first") in (None, items[0])
    )
    if right and "order" in gold:
        right = items == sorted(items, key=members.index, reverse=gold["order"] == "backwards")
    return Verdict(Outcome.CORRECT if right else Outcome.INCORRECT, " ".join(items))


WORLD_VERIFIERS: dict[str, Callable[[str, Mapping[str, Any]], Verdict]] = {
    "world_answer": verify_answer,
    "world_list": verify_list,
}
