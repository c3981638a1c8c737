r"""Short numeric answers, as in GSM8K (Cobbe et al. 2021): read one number, compare it exactly.

Pure Python, linear in the length of the text, no evaluation of anything: `10 + 5` is not an answer here. Where a
completion can be read in two ways (`5 and 6`, `1,23`, `5 * 3`) it is UNPARSEABLE: a reward for a wrong answer does
more harm in training than a missed one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from lab.records import Outcome, Verdict

MAX_CHARACTERS = 200_000
"""Longer completions are not read at all (`too long`)."""
MAX_DIGITS = 200

_SCALES = {
    "hundred": 100,
    "thousand": 1_000,
    "k": 1_000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "dozens": 12,
}
_PLAIN = r"(?:[0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_CURRENCY = r"[$€£¥₹]"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]\s?)?(?:{_CURRENCY}\s?)?(?P<sign2>-)?(?P<head>{_PLAIN})"
    r"(?:\s?/\s?(?P<denominator>[0-9]+)|\s(?P<numerator>[0-9]+)/(?P<parts>[0-9]+))?"
)
# Only where a number follows at once: "#### Step 1" is a Markdown heading and "A: He has" opens a worked answer.
_LEAD = r"[ \t]*(?P<rest>(?:[-+*(]|\\?\$|[€£¥₹])*[ \t]?\.?[0-9][^\n]*)"
_MARKERS = (re.compile(rf"####{_LEAD}"), re.compile(rf"^[ \t]*A:{_LEAD}", re.MULTILINE))
_HEADING = re.compile(r"[0-9]+[.):][ \t]+[^\W\d_]")
_PHRASED = re.compile(
    r"\b(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:\*\*)?\s*(?:is\b\s*:?|:|=)\s*(?P<rest>[^\n]*)", re.IGNORECASE
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{(?P<inner>(?:[^{}\n]|\{[^{}\n]*\})*)\}")
# A model that does not stop goes on with the next question of its few-shot prompt, or with the other side's turn:
# nothing after that is its answer.
_NEXT_TURN = re.compile(
    r"<\|[a-z_]+\|>|</s>|<(?:end|start)_of_turn>"
    r"|\n[ \t]*(?:\*\*)?(?:Question|Q|Problem|Human|User)(?:\*\*)?[ \t]*[0-9]*:"
)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}")
_LATEX_NOISE = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}")
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")


def strip_annotations(answer: str) -> str:
    """A worked GSM8K answer without its calculator annotations: `5*2=<<5*2=10>>10` -> `5*2=10`."""
    return _CALCULATOR.sub("", answer)


def read_number(text: str) -> Fraction | None:
    """The one number that `text` states, or None where it states none, several, or something not yet worked out.

    Accepts currency signs, thousands separators, decimals, fractions, mixed numbers, percent signs (dropped: GSM8K
    writes 25 for 25%), scale words and trailing units.
    """
    text = _clean(text)
    if len(text) > 2_000:
        return None
    if "=" in text:
        text = text.rpartition("=")[2].strip()
    match = _NUMBER.match(text)
    if match is None:
        # "that Tom has 5 apples": words may come first, then there must be no other number at all.
        start = re.search(r"[0-9]", text)
        if start is None:
            return None
        match = next((m for m in _NUMBER.finditer(text) if m.end() > start.start()), None)
        if match is None or not re.fullmatch(r"[^0-9]*[\s(*]", text[: match.start()]):
            return None
        if re.search(r"[0-9]", text[match.end() :]):
            return None
    value = _value(match)
    rest = text[match.end() :]
    return None if value is None or not _is_unit(rest) else _scaled(value, rest)


def _is_unit(rest: str) -> bool:
    """Whether what follows a number leaves it the answer: units do, operators and second numbers do not."""
    if not rest or not rest.strip():
        return True
    if re.match(r"\s*(?:[-+*/^×÷·−–±√(]|\\times|\\cdot|\\div)+\s*[$]?\s*[0-9(]", rest):
        return False  # arithmetic or a range
    if re.match(r"[0-9]|[.,:][0-9]|[²³¹⁰-⁹½¼¾⅓⅔]|\^|!|\s+[0-9]|[eE][-+]?[0-9]", rest):
        return False  # 1.2.3, 1,23, 5:30, 2^10, 5!, "4 4", 1e3
    return not re.search(r"(?:\b(?:and|or|to|plus|minus|times|x)\b|[,;&|])\s*(?:about\s+)?[-$]?\s*[0-9]", rest)


def extract_answer(completion: str, last_number: bool = False) -> tuple[Fraction | None, str | None]:
    """The final answer of a completion as (value, the text that it was read from).

    In this order: the first `#### n` or line `A: n` (the first, as OpenAI's reference does: what follows is a
    continuation), the last boxed expression, the last "the answer is n"; with `last_number` also the last number of
    the text, which rewards truncated work by luck and is therefore off unless asked for.
    """
    turn = _NEXT_TURN.split(completion.lstrip(), maxsplit=1)[0]
    for marker in _MARKERS:
        rest = next((m.group("rest") for m in marker.finditer(turn) if not _HEADING.match(m.group("rest"))), None)
        if rest is not None:
            return read_number(rest), rest.strip()[:80]
    if boxed := _BOXED.findall(turn):
        return read_number(boxed[-1]), boxed[-1].strip()[:80]
    if phrased := _PHRASED.findall(turn):
        rest = re.split(r"(?<=[^0-9])\.\s|\.\s+(?=[A-Z])|[!?]\s", phrased[-1])[0]
        return read_number(rest), rest.strip()[:80]
    if last_number and (numbers := list(_NUMBER.finditer(_clean(turn)))):
        return _value(numbers[-1]), numbers[-1].group(0)
    return None, None


def parse_gold(raw: Any) -> dict[str, Any]:
    """The gold mapping for a GSM8K answer column (`... #### 42`) or a bare number.

    Raises ValueError where no number can be read, so that bad data stops a run while it is loaded.
    """
    if isinstance(raw, Mapping):
        return {**raw, **parse_gold(raw.get("answer"))}
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        raise ValueError(f"expected a number or a worked answer that ends in '#### n', got {raw!r}")
    text = str(raw)
    final = text.rpartition("####")[2].strip()
    value = read_number(final)
    if value is None:
        raise ValueError(f"no number can be read from the gold answer {final[:80]!r}")
    return {"verifier": "gsm8k", "answer": _canonical(value)}


def verify(completion: str, gold: Mapping[str, Any]) -> Verdict:
    """CORRECT where the completion's final answer equals `gold["answer"]` exactly.

    `gold["last_number"]` true allows the last number of the text as a fallback.
    """
    if len(completion) > MAX_CHARACTERS:
        return Verdict(Outcome.UNPARSEABLE, "too long")
    expected = read_number(str(gold["answer"]))
    if expected is None:
        raise ValueError(f"gold.answer: expected a number, got {gold['answer']!r}")
    value, text = extract_answer(completion, bool(gold.get("last_number", False)))
    if value is None:
        return Verdict(Outcome.UNPARSEABLE, text)
    return Verdict(Outcome.CORRECT if value == expected else Outcome.INCORRECT, _canonical(value))


def _clean(text: str) -> str:
    text = text.replace("−", "-").replace("\u00a0", " ").replace("\u202f", " ")
    text = text.replace("\\$", "$").replace("\\%", "%").replace("\\,", "").replace("{,}", ",").replace("\\!", "")
    text = _LATEX_FRACTION.sub(r"\1/\2", _LATEX_NOISE.sub(r" \1", text))
    text = re.sub(r"\\[()\[\]]|\$(?![0-9.\s-])|(?<![0-9])[*_`]{2,}|[*_`]{2,}(?![0-9*])|(?<=[0-9.%])\$", "", text)
    text = re.sub(r"^\s*(?:\\?\$|\*)\s*(?=[^0-9\s.-])", "", text)
    return text.strip().strip("*`_\"'").strip()


def _value(match: re.Match[str]) -> Fraction | None:
    head = match.group("head").replace(",", "")
    if len(head) > MAX_DIGITS:
        return None
    value = Fraction(head if not head.startswith(".") else f"0{head}")
    if (denominator := match.group("denominator")) is not None:
        if len(denominator) > MAX_DIGITS or int(denominator) == 0:
            return None
        value /= int(denominator)
    elif (parts := match.group("parts")) is not None:
        numerator = match.group("numerator")
        if len(parts) > MAX_DIGITS or len(numerator) > MAX_DIGITS or "." in head or int(numerator) >= int(parts):
            return None  # "11 7/6" and "4 4/0" are not mixed numbers
        value += Fraction(int(numerator), int(parts))
    negative = ((match.group("sign") or "").strip() == "-") != (match.group("sign2") is not None)
    return -value if negative else value


def _scaled(value: Fraction, rest: str) -> Fraction:
    word = re.match(r"\s?(hundred|thousand|million|billion|trillion|dozens?)\b|([kK])\b", rest, re.IGNORECASE)
    return value if word is None else value * _SCALES[(word.group(1) or word.group(2)).lower()]


def _canonical(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"
