"""Conversations as texts: message lists in, one prompt out. No chat template: that is the tokenizer's, much later.

A conversation of one turn becomes that turn; a longer one stays a text with "Human:" and "Assistant:" before each turn
but the first, as HH-RLHF and the benchmarks of ``lab.benchmarks.readers`` have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.data.jsonl import JsonlError, shorten

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
SPEAKERS = {"system": "System", "user": "Human", "assistant": "Assistant"}
Turns = list[tuple[str, str]]


def turns_at(path: Path, line: int, key: str, value: Any) -> Turns:
    """A list of messages ({"role", "content"}) as (role, content).

    Raises JsonlError naming the message for anything else, an empty list and unknown roles.
    """
    if not isinstance(value, list) or not value:
        raise JsonlError(f"{path}:{line}: key '{key}': expected a text or a list of messages, got {shorten(value)}")
    turns = []
    for number, message in enumerate(value):
        where = f"{path}:{line}: key '{key}[{number}]'"
        if not isinstance(message, dict):
            raise JsonlError(f"{where}: expected a message with role and content, got {shorten(message)}")
        role, content = message.get("role"), message.get("content")
        if role not in SPEAKERS:
            raise JsonlError(f"{where}: role: expected one of {', '.join(SPEAKERS)}, got {shorten(role)}")
        if not isinstance(content, str):
            raise JsonlError(f"{where}: content: expected a text, got {shorten(content)}")
        turns.append((role, content))
    return turns


def answered(path: Path, line: int, key: str, value: Any) -> tuple[Turns, str]:
    """The turns before a conversation's last one, and that one, the assistant's.

    Raises JsonlError as ``turns_at``, and where somebody else speaks last.
    """
    turns = turns_at(path, line, key, value)
    role, completion = turns[-1]
    if role != "assistant":
        raise JsonlError(f"{path}:{line}: key '{key}': the last message is by {role!r}, expected 'assistant'")
    return turns[:-1], completion


def render(turns: Sequence[tuple[str, str]]) -> str:
    """Turns (role, content) as one text, each with its speaker before it, but for a user who speaks first."""
    if len(turns) == 1 and turns[0][0] == "user":
        return turns[0][1]
    return "".join(f"\n\n{SPEAKERS[role]}: {content}" for role, content in turns).removeprefix(HUMAN).strip()


def opening(prompt: str) -> str:
    """The first turn of a rendered prompt."""
    return prompt.split(ASSISTANT, 1)[0]
