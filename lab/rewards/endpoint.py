"""A judge behind an OpenAI-compatible ``/chat/completions`` endpoint that returns log-probabilities.

What this is not: a general client (and it needs the standard library alone). One question, one token, its likeliest
alternatives. A model that thinks before it answers, or an endpoint without ``top_logprobs``, cannot be read this way:
``JudgeFailedError``.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lab.config import EndpointJudge
from lab.records import Completion, Prompt
from lab.rewards.judge_templates import (
    COMPARE_VERDICTS,
    GRADE_VERDICTS,
    GRADES,
    fill,
    read_templates,
    shown,
)

TOP_LOGPROBS = 20
MAX_RESPONSE_BYTES = 1 << 20
MAX_PAUSE_SECONDS = 30.0
WORKERS = 8
MIN_FAILURES = 5
MAX_FAILED_SHARE = 0.2
FATAL_STATUSES = frozenset({301, 302, 303, 307, 308, 401, 402, 403, 404, 405})
"""Wrong place or no permission: every further question would end the same way."""


class JudgeFailedError(RuntimeError):
    """The endpoint fails too often for its verdicts to be used: the run stops, it does not read failures as scores."""


class _TransientError(Exception):
    """Worth asking again. ``pause_seconds``: what the server asked us to wait, if it did."""

    def __init__(self, message: str, pause_seconds: float | None = None) -> None:
        super().__init__(message)
        self.pause_seconds = pause_seconds


class _UnusableError(Exception):
    """An answer (or a refusal) that holds no verdict; asking again would not change it."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host, so it stays an error."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class EndpointJudgeBackend:
    """Asks for a one-token verdict and reads its log-probability among the likeliest ``TOP_LOGPROBS`` tokens.

    A verdict that is not among them counts as impossible (-inf); if none is, the question has no answer (NaN). Answers
    are kept in memory by the hash of the question. ``calls`` counts questions sent (retries apart, in ``retried``),
    ``failed`` those without a usable answer, and ``last_error`` says how the last of these ended. More than
    ``MAX_FAILED_SHARE`` of at least ``MIN_FAILURES`` failures, or a status that no retry changes, raises
    JudgeFailedError. Raises ValueError for a URL that is none, or a named key variable that is not set.
    """

    grades: tuple[float, ...] | None = GRADES

    def __init__(self, config: EndpointJudge, backoff_seconds: float = 0.5) -> None:
        parts = urllib.parse.urlsplit(config.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"judge.url: expected http://... or https://..., got {config.url!r}")
        if parts.username or parts.password:
            raise ValueError("judge.url: holds a name or a password, which would be stored; use judge.key_variable")
        if config.timeout_seconds <= 0 or config.retries < 0:
            raise ValueError("judge: timeout_seconds must be above 0 and retries not below 0")
        base = config.url.rstrip("/")
        self.url = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self.config, self.backoff_seconds = config, backoff_seconds
        self.templates = read_templates(config.template)
        self.calls, self.retried, self.failed, self.last_error = 0, 0, 0, ""
        self._key = _read_key(config.key_variable)
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._known: dict[str, tuple[float, ...]] = {}
        self._lock = threading.Lock()

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Completion], second: Sequence[Completion]
    ) -> np.ndarray:
        """Log-probabilities (N, 2) of the verdicts for first and second slot; a row of NaN without an answer."""
        questions = [
            fill(
                self.templates.compare,
                {"prompt": p.text, "first": shown(a.text, a.truncated), "second": shown(b.text, b.truncated)},
            )
            for p, a, b in zip(prompts, first, second, strict=True)
        ]
        return self._ask_all(questions, COMPARE_VERDICTS)

    def grade(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        """Log-probabilities (N, 5) of the grades; a row of NaN without an answer."""
        questions = [
            fill(self.templates.grade, {"prompt": p.text, "completion": shown(c.text, c.truncated)})
            for p, c in zip(prompts, completions, strict=True)
        ]
        return self._ask_all(questions, GRADE_VERDICTS)

    def _ask_all(self, questions: Sequence[str], verdicts: Sequence[str]) -> np.ndarray:
        distinct = list(dict.fromkeys(questions))
        with ThreadPoolExecutor(WORKERS) as pool:  # map cancels what has not begun as soon as one question raises
            answers = dict(zip(distinct, pool.map(lambda text: self._answer(text, verdicts), distinct), strict=True))
        return np.array([answers[question] for question in questions], dtype=float).reshape(-1, len(verdicts))

    def _answer(self, question: str, verdicts: Sequence[str]) -> tuple[float, ...]:
        """The verdicts' log-probabilities, from memory or from the endpoint; NaN if there is no usable answer."""
        name = hashlib.sha256(json.dumps([question, *verdicts]).encode("ascii")).hexdigest()
        with self._lock:
            if name in self._known:
                return self._known[name]
            self.calls += 1
        try:
            answer = self._ask(question, verdicts)
        except (_TransientError, _UnusableError) as error:
            self._count_failure(str(error))
            return (math.nan,) * len(verdicts)
        with self._lock:
            self._known[name] = answer
        return answer

    def _count_failure(self, message: str) -> None:
        with self._lock:
            self.failed += 1
            self.last_error = message
            if self.failed >= MIN_FAILURES and self.failed > MAX_FAILED_SHARE * self.calls:
                raise JudgeFailedError(
                    f"{self.url}: {self.failed} of {self.calls} questions got no usable answer; the last: {message}"
                )

    def _ask(self, question: str, verdicts: Sequence[str]) -> tuple[float, ...]:
        for attempt in range(self.config.retries + 1):
            try:
                return read_verdicts(self._post(question), verdicts)
            except _TransientError as error:
                if attempt == self.config.retries:
                    raise
                pause = self.backoff_seconds * 2**attempt if error.pause_seconds is None else error.pause_seconds
            with self._lock:
                self.retried += 1
            time.sleep(min(pause, MAX_PAUSE_SECONDS))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _post(self, question: str) -> bytes:
        body = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": TOP_LOGPROBS,
        }
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode("ascii"), headers, method="POST")
        deadline = time.monotonic() + self.config.timeout_seconds
        try:
            with self._opener.open(request, timeout=self.config.timeout_seconds) as response:
                return _read_until(response, deadline)
        except urllib.error.HTTPError as error:
            raise self._of_status(error) from None
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            raise _TransientError(self._without_key(f"{type(error).__name__}: {error}")) from None

    def _of_status(self, error: urllib.error.HTTPError) -> Exception:
        with error:
            try:
                said = error.read(300).decode("utf-8", "replace").strip()
            except (OSError, http.client.HTTPException):
                said = ""
        message = self._without_key(f"HTTP {error.code} {error.reason}: {said}".rstrip(": "))
        if error.code in FATAL_STATUSES:
            return JudgeFailedError(f"{self.url}: {message}")
        if error.code in (408, 429) or error.code >= 500:
            return _TransientError(message, _seconds(error.headers.get("Retry-After")))
        return _UnusableError(message)

    def _without_key(self, message: str) -> str:
        """Servers quote what they were sent; a key may not reach a log or a manifest that way."""
        return message.replace(self._key, "***") if self._key else message


def read_verdicts(raw: bytes, verdicts: Sequence[str]) -> tuple[float, ...]:
    """Log-probability of each verdict at the first token of a chat completion.

    Tokens that differ from a verdict only by white space around it (" A") are that verdict, and their probabilities
    add up. Raises _UnusableError if the answer is not JSON, has no log-probabilities, or none of its tokens is a
    verdict.
    """
    try:
        answer = json.loads(raw.decode("utf-8"), parse_constant=_refuse)
        token = answer["choices"][0]["logprobs"]["content"][0]
        listed = {str(one["token"]): _logprob(one["logprob"]) for one in [token, *token["top_logprobs"]]}
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError) as error:
        raise _UnusableError(f"no log-probabilities in the answer ({type(error).__name__}): {raw[:200]!r}") from None
    found = dict.fromkeys(verdicts, -math.inf)
    for text, logprob in listed.items():
        if text.strip() in found:
            found[text.strip()] = float(np.logaddexp(found[text.strip()], logprob))
    if all(value == -math.inf for value in found.values()):
        raise _UnusableError(f"none of {', '.join(verdicts)} among the likeliest tokens: {list(listed)[:5]}")
    return tuple(found.values())


def _logprob(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value <= 1e-3:
        raise ValueError(f"logprob: expected a finite number not above 0, got {value!r}")
    return float(value)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _read_key(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"judge.key_variable: the environment variable {variable} is not set")
    if not (key.isascii() and key.isprintable()):  # http.client would quote it in its own complaint
        raise ValueError(f"judge.key_variable: {variable} holds characters that cannot stand in a header")
    return key


def _read_until(response: Any, deadline: float) -> bytes:
    """The body, within the time and size allowed for one answer: a server that drips may not hold a worker for ever."""
    chunks: list[bytes] = []
    size = 0
    while chunk := response.read1(1 << 16):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_RESPONSE_BYTES:
            raise _UnusableError(f"the answer is larger than {MAX_RESPONSE_BYTES} bytes")
        if time.monotonic() > deadline:
            raise _TransientError("the answer took longer than judge.timeout_seconds")
    return b"".join(chunks)


def _seconds(retry_after: str | None) -> float | None:
    """``Retry-After`` in seconds; its other form, a date, is left to the backoff."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
