"""A language model as judge: one core, three backends.

A verdict is read from the log-probabilities of the verdict tokens, never from sampled text. So it is deterministic, has
a degree, and an answer without a verdict is unknown (NaN) and not 0. Judges favour a slot whatever stands in it (Zheng
et al. 2023, arXiv:2306.05685, section 3.3), so every comparison is made in both orders; the mean over orders cancels a
constant preference for a slot to first order, and what was cancelled is reported. Expected grades: Liu et al. 2023
(G-Eval, arXiv:2303.16634, eq. 1). A small judge trained to emit verdicts: Zhang et al. 2024 (arXiv:2408.15240).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from lab.models import encode_completions, encode_prompts, load_policy, next_token_logprobs
from lab.records import Completion, Prompt
from lab.rewards.endpoint import EndpointJudgeBackend, JudgeFailedError
from lab.rewards.judge_templates import (
    COMPARE_VERDICTS,
    GRADE_VERDICTS,
    GRADES,
    fill,
    read_templates,
    shown,
)

__all__ = [
    "EndpointJudgeBackend", "JudgeBackend", "JudgeFailedError", "JudgeReward", "LocalJudgeBackend", "Markers", "Orders",
    "WorldJudgeBackend", "compare_ids", "first_probability", "grade_ids", "grade_scores",
]  # fmt: skip


class JudgeBackend(Protocol):
    """Who is asked. Rows of NaN where no verdict could be had.

    grades: what the verdicts of ``grade`` are worth; None for the two verdicts good and bad. calls: questions put to a
    model that bills them (0 for a judge of the lab's own).
    """

    grades: tuple[float, ...] | None
    calls: int

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Completion], second: Sequence[Completion]
    ) -> np.ndarray:
        """Log-probabilities (N, 2) of "the first slot is better" and "the second is", in this one order."""
        ...

    def grade(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        """Log-probabilities (N, K) of the verdicts on one completion: (good, bad), or one for each of ``grades``."""
        ...


# ---------------------------------------------------------------- from log-probabilities to numbers


def first_probability(logprobs_N2: np.ndarray) -> np.ndarray:
    """P(first slot) (N,): the softmax over the two verdict tokens alone, 1 / (1 + exp(l_second - l_first))."""
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(logprobs_N2[:, 1] - logprobs_N2[:, 0]))


def grade_scores(logprobs_NK: np.ndarray, grades: tuple[float, ...] | None) -> np.ndarray:
    """Scores (N,): log P(good) - log P(bad), or the expected grade under the softmax over the grades' tokens."""
    if grades is None:
        return logprobs_NK[:, 0] - logprobs_NK[:, 1]
    weights = np.exp(logprobs_NK - logprobs_NK.max(axis=1, keepdims=True))
    return weights @ np.array(grades) / weights.sum(axis=1)


@dataclass(frozen=True, eq=False)
class Orders:
    """P(first slot) (N,) of the same N comparisons in both orders: as asked, and with the two completions exchanged."""

    forward: np.ndarray
    backward: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """P(the first completion is better) (N,), averaged over the orders; NaN if either order has no verdict."""
        return (self.forward + 1.0 - self.backward) / 2

    @property
    def position_bias(self) -> float | None:
        """Mean over items and orders of P(first slot) - 0.5, in [-0.5, 0.5]; 0 for a judge that ignores the order."""
        known = (self.forward + self.backward)[self._known] / 2 - 0.5
        return float(known.mean()) if len(known) else None

    @property
    def inconsistent(self) -> float | None:
        """Share of items on which exchanging the completions did not exchange the verdict."""
        forward, backward = np.sign(self.forward - 0.5)[self._known], np.sign(self.backward - 0.5)[self._known]
        return float((forward != -backward).mean()) if len(forward) else None

    @property
    def unanswered(self) -> int:
        """Items without a verdict in at least one order."""
        return int((~self._known).sum())

    @property
    def _known(self) -> np.ndarray:
        return ~np.isnan(self.forward + self.backward)

    def report(self) -> dict[str, Any]:
        """``items``, ``unanswered``, ``position_bias`` and ``inconsistent``, as they enter an artifact."""
        return {
            "items": len(self.forward),
            "unanswered": self.unanswered,
            "position_bias": self.position_bias,
            "inconsistent": self.inconsistent,
        }


class JudgeReward:
    """weight * (grade - shift) / scale; pairs are compared directly, in both orders."""

    name = "judge"

    def __init__(self, backend: JudgeBackend, normalisation: tuple[float, float], weight: float = 1.0) -> None:
        (self.shift, self.scale), self.backend, self.weight = normalisation, backend, weight

    @property
    def calls(self) -> int:
        """Questions put so far to a model that bills them: the ledger's ``judge_calls``."""
        return self.backend.calls

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        """Normalised grades (N,); NaN where the judge gave no verdict."""
        if not prompts:
            return np.zeros(0)
        raw = grade_scores(self.backend.grade(prompts, completions), self.backend.grades)
        return self.weight * (raw - self.shift) / self.scale

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Completion], second: Sequence[Completion]
    ) -> np.ndarray:
        """P(first is better) (N,), averaged over both orders; NaN where no verdict could be had."""
        return self.orders(prompts, first, second).first

    def orders(self, prompts: Sequence[Prompt], first: Sequence[Completion], second: Sequence[Completion]) -> Orders:
        """Both orders of N comparisons, for what they say together (``first``) and against each other."""
        if not prompts:
            return Orders(np.zeros(0), np.zeros(0))
        forward, backward = self.backend.compare(prompts, first, second), self.backend.compare(prompts, second, first)
        return Orders(first_probability(forward), first_probability(backward))


# ---------------------------------------------------------------- the world's own judge


@dataclass(frozen=True)
class Markers:
    """Token ids beyond the tokenizer's vocabulary: no text, however hostile, can spell a question or a verdict.

    versus stands between two completions; compare and grade ask for a verdict; the rest are the verdicts.
    """

    versus: int
    compare: int
    grade: int
    first: int
    second: int
    good: int
    bad: int

    @classmethod
    def after(cls, rows: int) -> Markers:
        """The ids that follow the ``rows`` of an embedding."""
        return cls(*range(rows, rows + 7))

    def write(self, path: Path) -> None:
        """``path`` as JSON."""
        path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Markers:
        """What ``write`` wrote. Raises ValueError if ``path`` is not that."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError) as error:
            raise ValueError(f"{path}: not the markers of a trained judge: {error}") from None


def _sides(tokenizer: PreTrainedTokenizerBase, completions: Sequence[Completion]) -> list[list[int]]:
    return encode_completions(tokenizer, [c.text for c in completions], [not c.truncated for c in completions])


def compare_ids(
    tokenizer: PreTrainedTokenizerBase,
    markers: Markers,
    prompts: Sequence[Prompt],
    first: Sequence[Completion],
    second: Sequence[Completion],
) -> list[list[int]]:
    """Token ids of N comparisons up to the verdict: prompt, first completion, versus, second completion, compare."""
    begin = encode_prompts(tokenizer, [prompt.text for prompt in prompts])
    return [
        [*prompt, *a, markers.versus, *b, markers.compare]
        for prompt, a, b in zip(begin, _sides(tokenizer, first), _sides(tokenizer, second), strict=True)
    ]


def grade_ids(
    tokenizer: PreTrainedTokenizerBase, markers: Markers, prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[list[int]]:
    """Token ids of N gradings up to the verdict: prompt, completion, grade."""
    begin = encode_prompts(tokenizer, [prompt.text for prompt in prompts])
    return [[*prompt, *side, markers.grade] for prompt, side in zip(begin, _sides(tokenizer, completions), strict=True)]


class WorldJudgeBackend:
    """The judge that stage ``judge`` trains: ``final/`` and ``markers.json`` in one artifact."""

    grades: tuple[float, ...] | None = None
    calls = 0

    def __init__(self, artifact: Path, device: str | torch.device) -> None:
        self.model, self.tokenizer = load_policy(artifact / "final", device)
        self.markers = Markers.read(artifact / "markers.json")
        rows = self.model.get_input_embeddings().weight.shape[0]
        if max(asdict(self.markers).values()) >= rows:
            raise ValueError(f"{artifact / 'markers.json'}: a marker lies outside the {rows} rows of the embedding")

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Completion], second: Sequence[Completion]
    ) -> np.ndarray:
        """Log-probabilities (N, 2) of the markers first and second."""
        ids = compare_ids(self.tokenizer, self.markers, prompts, first, second)
        return _ask(self.model, ids, [self.markers.first, self.markers.second])

    def grade(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        """Log-probabilities (N, 2) of the markers good and bad."""
        ids = grade_ids(self.tokenizer, self.markers, prompts, completions)
        return _ask(self.model, ids, [self.markers.good, self.markers.bad])


# ---------------------------------------------------------------- any model on disk


class LocalJudgeBackend:
    """Any causal language model with a chat template, asked in words. ``calls`` counts its questions."""

    grades: tuple[float, ...] | None = GRADES

    def __init__(self, path: Path, device: str | torch.device, template: str = "") -> None:
        self.model, self.tokenizer = load_policy(path, device, dtype="auto")
        self.templates, self.calls = read_templates(template), 0
        self._compare_tokens = verdict_tokens(self.tokenizer, COMPARE_VERDICTS)
        self._grade_tokens = verdict_tokens(self.tokenizer, GRADE_VERDICTS)

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Completion], second: Sequence[Completion]
    ) -> np.ndarray:
        """Log-probabilities (N, 2) of "A" and "B"; NaN where the question is longer than the model can read."""
        return self._answers(self.comparisons(prompts, first, second), self._compare_tokens)

    def comparisons(
        self, prompts: Sequence[Prompt], first: Sequence[Completion], second: Sequence[Completion]
    ) -> list[str]:
        """The questions of N comparisons in words."""
        return [
            fill(
                self.templates.compare, {"prompt": self._safe(p.text), "first": self._side(a), "second": self._side(b)}
            )
            for p, a, b in zip(prompts, first, second, strict=True)
        ]

    def grade(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        """Log-probabilities (N, 5) of "1" to "5"; NaN where the question is longer than the model can read."""
        questions = [
            fill(self.templates.grade, {"prompt": self._safe(p.text), "completion": self._side(c)})
            for p, c in zip(prompts, completions, strict=True)
        ]
        return self._answers(questions, self._grade_tokens)

    def _side(self, completion: Completion) -> str:
        return shown(self._safe(completion.text), completion.truncated)

    def _safe(self, text: str) -> str:
        """``text`` with the model's special tokens pulled apart: a completion may not open a turn of its own."""
        for token in self.tokenizer.all_special_tokens:
            if len(token) > 1:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _answers(self, questions: Sequence[str], verdicts: Sequence[Sequence[int]]) -> np.ndarray:
        self.calls += len(questions)
        flat = [token for tokens in verdicts for token in tokens]
        logprobs = _ask(self.model, encode_prompts(self.tokenizer, questions), flat)
        ends = np.cumsum([len(tokens) for tokens in verdicts])[:-1]
        with np.errstate(invalid="ignore"):  # NaN stays NaN
            return np.stack([np.logaddexp.reduce(part, axis=1) for part in np.split(logprobs, ends, axis=1)], axis=1)


def verdict_tokens(tokenizer: PreTrainedTokenizerBase, verdicts: Sequence[str]) -> list[list[int]]:
    """The ids of each verdict, with and without a leading space where these are single tokens of their own.

    Raises ValueError if a verdict is not one known token, or two verdicts share one.
    """
    found = []
    for verdict in verdicts:
        spellings = tokenizer([verdict, f" {verdict}"], add_special_tokens=False)["input_ids"]
        found.append(sorted({ids[0] for ids in spellings if len(ids) == 1 and ids[0] != tokenizer.unk_token_id}))
        if not found[-1]:
            raise ValueError(
                f"{tokenizer.name_or_path}: the verdict {verdict!r} is not one token, so it cannot be read"
            )
    if len({token for tokens in found for token in tokens}) != sum(map(len, found)):
        raise ValueError(f"{tokenizer.name_or_path}: two of the verdicts {', '.join(verdicts)} share a token")
    return found


def _ask(model: Any, questions: Sequence[Sequence[int]], tokens: Sequence[int]) -> np.ndarray:
    """Log-probabilities (N, K), float64, of ``tokens`` after each question; NaN for questions that are too long."""
    limit = model.config.get_text_config().max_position_embeddings
    short = [row for row, ids in enumerate(questions) if len(ids) < limit]
    answers = np.full((len(questions), len(tokens)), np.nan)
    if short:
        answers[short] = next_token_logprobs(model, [questions[row] for row in short], tokens).double().numpy()
    return answers
