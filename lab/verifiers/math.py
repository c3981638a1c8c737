r"""Mathematical answers, compared by math-verify (a LaTeX parser and SymPy) in a child process.

Here: which part of a completion is its final answer, and a second look at every equality that math-verify grants. Its
comparison subtracts and rounds, so that 1/2004! equals 1/2006! and two equations without real solutions are the same; a
reward for a wrong answer does more harm in training than a missed one, so a granted equality must survive `_refuted`.

The text of a completion is only ever parsed by math-verify's LaTeX grammar; it reaches neither `eval` nor `sympify`.
math-verify's own time limits (`signal.alarm`) are off: `lab.verifiers.isolation` bounds the whole child.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

from lab.records import Outcome, Verdict
from lab.verifiers.isolation import TaskError, Worker, WorkerStoppedError

if TYPE_CHECKING:
    from sympy import Basic

MAX_CHARACTERS = 200_000
"""Longer completions are not read at all (`too long`)."""
MAX_ANSWER = 1_000
"""Longer answers are UNPARSEABLE."""
WORKER = Worker("math")


def parse_gold(raw: Any) -> dict[str, Any]:
    """The gold mapping for an answer in LaTeX or plain notation (`\\frac{1}{2}`, `28%`, `(3, 5)`, `\\text{odd}`).

    Raises ValueError where math-verify reads no answer with a value in it, or takes too long.
    """
    if isinstance(raw, Mapping):
        return {**raw, **parse_gold(raw.get("answer"))}
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        raise ValueError(f"expected a mathematical answer, got {raw!r}")
    text = str(raw).strip()
    try:
        readable = WORKER.call({"gold": text})
    except (WorkerStoppedError, TaskError) as error:
        raise ValueError(f"the gold answer {text[:80]!r} cannot be read: {error}") from None
    if not readable:
        raise ValueError(f"no mathematical answer can be read from the gold answer {text[:80]!r}")
    return {"verifier": "math", "answer": text}


def verify(completion: str, gold: Mapping[str, Any]) -> Verdict:
    """Whether the completion's final answer is mathematically equal to `gold["answer"]`. Never raises for bad text."""
    if len(completion) > MAX_CHARACTERS:
        return Verdict(Outcome.UNPARSEABLE, "too long")
    return WORKER.verdict(completion, gold)


# ---------------------------------------------------------------- which part of the text is the answer

_TURN = re.compile(r"<\|[a-z_]+\|>|</s>|<(?:end|start)_of_turn>")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?P<token>[0-9A-Za-z]))")
_BOX_JOINT = re.compile(r"(?:\s|\$|\\[()\[\],]|,|;|\.|and|or)*")
_PHRASE = re.compile(r"\b[Aa]nswer\b|\bANSWER\b")
_IS = re.compile(r"\b(?:is|are|be)\b\s*:?|(?<![<>!])=|:")
_ENVIRONMENT = re.compile(
    r"(?<!\\)\$\$(?P<a>.+?)\$\$|\\\[(?P<b>.+?)\\\]|(?<!\\)\$(?P<c>[^$]+?)(?<!\\)\$|\\\((?P<d>.+?)\\\)", re.DOTALL
)
_JOINT = re.compile(r"\s*(?:,|;|,?\s*and|,?\s*or)\s*")
_BOLD = re.compile(r"\*\*\s*([^*\n]+?)\s*\*\*")
_NUMBER = r"[-+]?\s?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?\.?[0-9]+"
_PLAIN = re.compile(rf"(?:{_NUMBER})(?:\s?/\s?[0-9]+|\s[0-9]+/[0-9]+)?(?:\s?\\?%)?")
_MIXED = re.compile(r"([-+]?)\s*([0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)")
_POWER = re.compile(r"\*\*\s*([-+]?(?:[0-9]+(?:\.[0-9]+)?|[A-Za-z]|\([^()]*\))(?:\^\{.*\})?)(?!.*\*\*)", re.DOTALL)
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\{\s*percent\s*\}|\bpercent)\s*$")
_FUNCTIONS = (
    "and or sin cos tan cot sec csc log ln exp sqrt pi alpha beta gamma theta lambda mu nu xi rho phi psi omega max min"
    " gcd lcm mod arcsin arccos arctan sinh cosh tanh infty"
)


def final_answer(completion: str) -> str | None:
    """The final answer of a completion as LaTeX without delimiters, or None where it states none.

    The last boxed expression or the last "answer is ...", whichever comes later; text that is nothing but mathematics
    is its own answer; else the last formula, bold number or `= number` of the last line. Thinking that was never
    finished contains no answer, and a bare number in prose is not one.
    """
    text = completion
    if "</think>" in text:
        text = text.rpartition("</think>")[2]
    elif "<think>" in text:
        return None
    text = _TURN.split(text.lstrip(), maxsplit=1)[0].strip()
    boxed, box_end = _last_boxed(text)
    phrase = None
    for match in reversed(list(_PHRASE.finditer(text, box_end))):
        phrase = _after_phrase(text[match.end() : match.end() + MAX_ANSWER])
        if phrase is not None:
            break
    if phrase is not None or boxed is not None:
        return phrase if phrase is not None else boxed
    return text if is_bare(text) else _last_formula(text)


def is_bare(text: str) -> bool:
    """Whether a text is one line of mathematics and nothing else, as reference answers are."""
    if not text or len(text) > 400 or "\n" in text or _ENVIRONMENT.search(text):
        return False
    rest = re.sub(r"\\(?:text|textbf|mathrm|mathbf|mbox|textit|operatorname)\s*\{[^{}]*\}", " ", text)
    rest = re.sub(r"\\(?:begin|end)\s*\{[a-zA-Z*]+\}(?:\{[a-z|]*\})?", " ", rest)
    rest = re.sub(r"\\[a-zA-Z]+", " ", rest)
    words = re.findall(r"[A-Za-z]{2,}", rest)
    foreign = re.search(r"[^\W\d_a-zA-Z\u0370-\u03ff]", rest)  # letters of any other script are prose
    return foreign is None and all(word in _FUNCTIONS.split() for word in words)


def _last_boxed(text: str) -> tuple[str | None, int]:
    """The contents of the last run of boxes joined by nothing but commas and "and", and where it ends."""
    found: list[tuple[int, int, str]] = []
    for match in _BOX.finditer(text):
        if found and match.start() < found[-1][1]:
            continue  # a box within a box
        if match.group("token"):
            found.append((match.start(), match.end(), match.group("token")))
            continue
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0) if text[end - 1] != "\\" else 0
            end += 1
        if depth == 0:
            found.append((match.start(), end, _undress(text[match.end() : end - 1])))
    if not found:
        return None, 0
    parts, start = [found[-1][2]], found[-1][0]
    for begin, end, inner in reversed(found[:-1]):
        between = text[end:start]
        if not between.strip(" $") or "\n\n" in between or not _BOX_JOINT.fullmatch(between):
            break
        parts.insert(0, inner)
        start = begin
    return ", ".join(parts), found[-1][1]


def _undress(inner: str) -> str:
    """The formula in a box that holds a sentence: `\\boxed{Answer $9$}`."""
    formulas = list(_ENVIRONMENT.finditer(inner))
    if not formulas or not re.search(r"[A-Za-z]{2}", _ENVIRONMENT.sub("", inner)):
        return inner
    return next(group for group in formulas[-1].groups() if group is not None).strip()


def _after_phrase(tail: str) -> str | None:
    """The answer in the first sentence after the word "answer", read from its last "is" backwards."""
    tail = tail.lstrip().removeprefix("**").lstrip()
    formula = _formulas_at(tail.lstrip(" :"))
    if formula is not None:
        return formula
    sentence = re.split(r"\.(?=\s|$)|\n\s*\n", tail)[0]
    if "\\[" in tail and "\\[" not in sentence:
        sentence = tail.partition("\\]")[0] + "\\]"
    for match in reversed(list(_IS.finditer(sentence))):
        rest = sentence[match.end() :].strip().removeprefix("**").strip()
        if (answer := _formulas_at(rest) or _plain_at(rest)) is not None:
            return answer
    return None


def _formulas_at(text: str) -> str | None:
    """Formulas in delimiters at the start of a text, several if commas or "and" join them."""
    parts: list[str] = []
    at = 0
    while (match := _ENVIRONMENT.match(text, at)) is not None:
        parts.append(next(group for group in match.groups() if group is not None).strip())
        if (unit := re.compile(r"\s?\\?%").match(text, match.end())) is not None:
            parts[-1] += r"\%"
        joint = _JOINT.match(text, unit.end() if unit else match.end())
        if joint is None:
            break
        at = joint.end()
    return ", ".join(parts) if parts else None


def _plain_at(text: str) -> str | None:
    """An answer without delimiters at the start of a text: mathematics only, or one number and its unit."""
    text = text.strip().strip("*").strip()
    if is_bare(text) and re.search(r"[0-9A-Za-z]", text):
        return text
    text = re.sub(r"^\\?[$€£]\s?", "", text)
    match = _PLAIN.match(text)
    if match is None:
        return None
    rest = text[match.end() :]
    if re.match(r"\s*[-+*/^×÷!(=]|[0-9]|[.,:][0-9]|\s+[0-9]|\s*\\[a-z]", rest):
        return None  # a formula
    if re.search(r"(?:and|or|to|,)\s+[0-9]", rest):
        return None  # several numbers
    if re.match(r"[a-zA-Z](?:[-+*/^=(]|\s*[-+*/=])", rest):
        return None
    return match.group(0)


def _last_formula(text: str) -> str | None:
    """For text without any sign of a final answer: the last formula, bold number or result of its last line."""
    line = text.rstrip().rpartition("\n")[2]
    formulas = list(_ENVIRONMENT.finditer(text))
    if formulas and formulas[-1].end() > len(text) - 200:
        last = next(group for group in formulas[-1].groups() if group is not None).strip()
        return last
    for bold in reversed(_BOLD.findall(line)):
        if (answer := _plain_at(bold)) is not None:
            return answer
    sentence = re.split(r"(?<=[^0-9])\.\s|(?<=[0-9])\.\s+(?=[A-Z])", line.rstrip(" .]"))[-1]
    results = list(re.finditer(r"=\s*", sentence))
    return _plain_at(sentence[results[-1].end() :]) if results else None


# ---------------------------------------------------------------- the child's side


def answer(request: Mapping[str, Any]) -> Any:
    """The task of the child: a verdict as a mapping, or for `{"gold": text}` alone whether that gold can be read."""
    if "completion" not in request:
        return _readable_gold(request["gold"])
    verdict = compare(request["completion"], str(request["gold"]["answer"]))
    return {"outcome": verdict.outcome.value, "extracted": verdict.extracted}


def compare(completion: str, gold: str) -> Verdict:
    """The verdict, computed here and now without any bound: only for the child and for trusted text."""
    from math_verify import verify as equal

    candidate = final_answer(completion)
    if candidate is None or not candidate.strip() or len(candidate) > MAX_ANSWER:
        return Verdict(Outcome.UNPARSEABLE)
    shown = candidate.strip()[:200]
    if len(words := _text(candidate)) > 1 and words.isalpha() and words == _text(gold):
        return Verdict(Outcome.CORRECT, shown)  # "odd" is a word here, not o*d*d
    stated = _gold_expressions(gold)
    given = _expressions(candidate)
    if not given:
        same = not stated and bool(_text(candidate)) and _text(candidate) == _text(final_answer(gold) or gold)
        return Verdict(Outcome.CORRECT if same else Outcome.UNPARSEABLE, shown)
    if any(_undefined(expression) for expression in given):
        return Verdict(Outcome.INCORRECT, shown)
    for target, value in product(stated, given):
        if equal(target, value, timeout_seconds=None, raise_on_error=False) and not _refuted(target, value):
            return Verdict(Outcome.CORRECT, shown)
    return Verdict(Outcome.INCORRECT, shown)


def _readable_gold(gold: str) -> bool:
    if not gold or len(gold) > MAX_CHARACTERS:
        return False
    prose = final_answer(gold)
    if prose is None:
        # A single word is a textual answer.
        return gold.isalpha() and gold.casefold() not in ("nan", "inf", "none", "null")
    found = _gold_expressions(gold)
    return bool(found) and not any(_undefined(expression) for expression in found)


@functools.lru_cache(maxsize=4096)
def _gold_expressions(gold: str) -> tuple[Basic, ...]:
    candidate = final_answer(gold)
    return _expressions(candidate) if candidate is not None else ()


def _expressions(candidate: str) -> tuple[Basic, ...]:
    """The candidate as SymPy expressions (none or one)."""
    from latex2sympy2_extended.latex2sympy2 import convert_to_pct
    from math_verify import LatexExtractionConfig, parse

    text = candidate.replace("\n", " ").replace("\\$", "").replace("$", "").strip().rstrip(".").strip()
    if text.endswith("\\"):
        text = text.rstrip("\\").strip()
    percent = _PERCENT.search(text)
    if percent is not None:
        text = text[: percent.start()]
    if (mixed := _MIXED.fullmatch(text)) is not None:
        sign, whole, numerator, denominator = mixed.groups()
        if int(numerator) >= int(denominator):
            return ()  # "11 7/6" and "4 4/0" are not mixed numbers
        text = rf"{sign}({whole}+\frac{{{numerator}}}{{{denominator}}})"
    for _ in range(8):  # Python's power: the rightmost first, since it binds to the right
        if (power := _POWER.search(text)) is None:
            break
        text = f"{text[: power.start()]}^{{{power.group(1).strip()}}}{text[power.end() :]}"
    if not text:
        return ()
    found = parse(
        f"${text}$",
        [LatexExtractionConfig(boxed_match_priority=-1)],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
    return tuple(convert_to_pct(expression) if percent is not None else expression for expression in found)


def _text(text: str) -> str:
    """An answer that is no formula to math-verify, without its LaTeX clothes: such answers are equal as text."""
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\\left|\\right|\\[,!;: ]|[\s$]|\.$", "", text).casefold()


def _undefined(expression: Any) -> bool:
    from sympy import Basic, nan, zoo

    return isinstance(expression, Basic) and expression.has(nan, zoo)


def _refuted(gold: Any, given: Any) -> bool:
    """Whether a closer look shows that two expressions which math-verify holds equal are not."""
    from sympy import Eq, FiniteSet, MatrixBase, Set, Tuple
    from sympy.core.relational import Relational

    if isinstance(gold, MatrixBase) and isinstance(given, MatrixBase):
        return gold.shape != given.shape or any(_refuted(a, b) for a, b in zip(gold.flat(), given.flat(), strict=True))
    if isinstance(gold, Tuple) and isinstance(given, Tuple):
        return len(gold) != len(given) or any(_refuted(a, b) for a, b in zip(gold, given, strict=True))
    if isinstance(gold, FiniteSet) and isinstance(given, FiniteSet):
        return not (
            all(any(not _refuted(a, b) for b in given.args) for a in gold.args)
            and all(any(not _refuted(a, b) for a in gold.args) for b in given.args)
        )
    if isinstance(gold, Eq) and isinstance(given, Eq):
        return _equations_refuted(gold, given)
    if isinstance(gold, Relational | Set | Tuple) or isinstance(given, Relational | Set | Tuple):
        return False
    return _values_refuted(gold, given)


def _equations_refuted(gold: Any, given: Any) -> bool:
    """Two equations that are not multiples of each other, and one has no solution: nothing was compared."""
    from sympy import solve

    try:
        ratio = ((gold.lhs - gold.rhs) / (given.lhs - given.rhs)).simplify()
        if not ratio.free_symbols and ratio.is_finite and not ratio.is_zero:
            return False
        return not solve(gold, gold.free_symbols) or not solve(given, given.free_symbols)
    except Exception:
        return False


def _values_refuted(gold: Any, given: Any) -> bool:
    from math_verify.grader import get_pct_val
    from sympy import Expr, Float, Rational

    if not isinstance(gold, Expr) or not isinstance(given, Expr):
        return False
    # 28% may stand for 0.28 and for 28, as in math-verify.
    for a, b in product({gold, get_pct_val(gold, gold)}, {given, get_pct_val(given, given)}):
        symbols = sorted(a.free_symbols | b.free_symbols, key=lambda symbol: str(symbol))
        tolerance = 1e-5 if a.has(Float) or b.has(Float) else 1e-20
        try:
            a, b = a.doit(), b.doit()
            if isinstance(a, Rational) and isinstance(b, Rational):
                if a == b:
                    return False
                continue
            agree = True
            for shift in (0, 1) if symbols else (0,):
                at = {symbol: Rational(2 * i + 7 + 5 * shift, 11 + i) for i, symbol in enumerate(symbols)}
                x, y = (_complex_parts(side.subs(at)) for side in (a, b))
                if x is None or y is None:
                    continue  # not a number at this point: nothing to hold against math-verify
                scale = max(abs(x[0]), abs(x[1]), abs(y[0]), abs(y[1]))
                agree &= max(abs(x[0] - y[0]), abs(x[1] - y[1])) <= tolerance * scale or scale < 1e-60 * bool(symbols)
            if agree:
                return False
        except Exception:
            return False
    return True


def _complex_parts(value: Any) -> tuple[Any, Any] | None:
    """Real and imaginary part to 30 digits, or None where the value is not a finite number."""
    number = value.evalf(30)
    real, imaginary = number.as_real_imag()
    return (real, imaginary) if real.is_Float or (real.is_Rational and imaginary.is_number) else None
