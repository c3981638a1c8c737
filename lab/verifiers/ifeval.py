"""Verifiable instructions (IFEval, Zhou et al. 2023) by the checkers of the optional package `if-verifiable`.

The checkers run regular expressions from the data over hostile text, so they live in the isolated child. Two of them
(sentence count, capital words) want NLTK's Punkt model, which is a download; here an untrained Punkt tokenizer with the
common English abbreviations stands in for it, and language detection is seeded. Without the package `parse_gold` raises
and `verify` says ERROR.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from lab.records import Outcome, Verdict
from lab.verifiers.isolation import Limits, TaskError, Worker, WorkerStoppedError

MAX_CHARACTERS = 200_000
"""Longer completions are not read at all (`too long`)."""
WORKER = Worker("ifeval", Limits(memory_bytes=2 << 30))
_MISSING = "the verifier 'ifeval' needs the package if-verifiable: pip install 'alignment-lab[ifeval]'"
_ABBREVIATIONS = (
    "mr mrs ms dr prof st jr sr vs etc e.g i.e u.s u.k a.m p.m inc ltd co corp no fig gen col lt rev hon approx dept"
    " est jan feb mar apr jun jul aug sep sept oct nov dec"
)


def parse_gold(raw: Any) -> dict[str, Any]:
    """The gold mapping of an IFEval row: `instruction_id_list`, `kwargs` (one mapping each) and, if used, `prompt`.

    Raises ValueError for unknown instructions or arguments, ModuleNotFoundError without the package.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected a mapping with instruction_id_list and kwargs, got {raw!r}")
    names, arguments = raw.get("instruction_id_list"), raw.get("kwargs")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"instruction_id_list: expected a list of names, got {names!r}")
    if not isinstance(arguments, list) or len(arguments) != len(names):
        raise ValueError(f"kwargs: expected one mapping for each of {len(names)} instructions, got {arguments!r}")
    gold = {"verifier": "ifeval", "instruction_id_list": names, "kwargs": arguments, "prompt": raw.get("prompt", "")}
    try:
        WORKER.call({"gold": gold})
    except TaskError as error:
        if error.kind in ("ImportError", "ModuleNotFoundError"):
            raise ModuleNotFoundError(error.message) from None
        raise ValueError(error.message) from None
    except WorkerStoppedError as stopped:
        raise ValueError(f"instruction_id_list {names!r}: {stopped.reason}") from None
    return gold


def verify(completion: str, gold: Mapping[str, Any]) -> Verdict:
    """CORRECT where every instruction is followed (strict mode); `extracted` names those that are not."""
    if len(completion) > MAX_CHARACTERS:
        return Verdict(Outcome.UNPARSEABLE, "too long")
    return WORKER.verdict(completion, gold)


# ---------------------------------------------------------------- the child's side


def answer(request: Mapping[str, Any]) -> Any:
    """The task of the child: a verdict as a mapping, or for a gold alone whether its checkers can be built."""
    gold = request["gold"]
    checkers = [
        (name, _checker(name, {key: value for key, value in (arguments or {}).items() if value is not None}, gold))
        for name, arguments in zip(gold["instruction_id_list"], gold["kwargs"], strict=True)
    ]
    if "completion" not in request:
        return True
    text = request["completion"].strip()
    if "</think>" in text:
        text = text.rpartition("</think>")[2].strip()
    elif text.startswith("<think>"):
        text = ""
    # As in the reference, an empty response follows no instruction.
    failed = [name for name, checker in checkers if not (text and checker.check_following(text))]
    return {"outcome": (Outcome.INCORRECT if failed else Outcome.CORRECT).value, "extracted": ", ".join(failed) or None}


def _checker(name: str, arguments: Mapping[str, Any], gold: Mapping[str, Any]) -> Any:
    import random

    known = _library()
    if name not in known:
        raise ValueError(f"instruction_id_list: unknown instruction {name!r}")
    random.seed(0)  # a checker draws the arguments that the data leaves out
    checker = known[name](name)
    try:
        checker.build_description(**arguments)
        if "prompt" in (checker.get_instruction_args() or {}) and gold.get("prompt"):
            checker.build_description(prompt=gold["prompt"])
    except TypeError as error:
        raise ValueError(f"kwargs of {name}: {error}") from None
    return checker


@functools.lru_cache(maxsize=1)
def _library() -> Mapping[str, Any]:
    """The registry of checkers, with the two stand-ins described above. Its `ifbench` sister downloads on import."""
    try:
        import langdetect
        from if_verifiable.ifeval import INSTRUCTION_DICT, instructions_util
        from nltk.tokenize import NLTKWordTokenizer
        from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
    except ImportError as error:
        raise ModuleNotFoundError(f"{_MISSING} ({error})") from None

    langdetect.DetectorFactory.seed = 0
    parameters = PunktParameters()
    parameters.abbrev_types = set(_ABBREVIATIONS.split())
    sentences, words = PunktSentenceTokenizer(parameters), NLTKWordTokenizer()
    instructions_util._get_sentence_tokenizer = lambda: sentences
    instructions_util.nltk.word_tokenize = lambda text: [w for s in sentences.tokenize(text) for w in words.tokenize(s)]
    registry: Mapping[str, Any] = INSTRUCTION_DICT
    return registry
