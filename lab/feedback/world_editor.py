"""Critique and revision in the world: an editor who knows the truth, and the tokens by which a model learns from him.

Nobody in the world reads, so a principle is a token of its own; what the editor does about it is the training data of
the small reviser (docs/decisions/0002-critique-and-revision-in-the-world.md).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lab.models import encode_completions, encode_prompts
from lab.records import Completion, Prompt
from lab.world.attributes import true_attributes
from lab.world.domains import Demonstrator, demonstrate
from lab.world.vocabulary import CLOSER, OPENERS, STYLE_WORDS


def breaks(prompt: Prompt, draft: Completion, attribute: str) -> bool:
    """Whether a draft falls short of the principle that speaks of ``attribute`` (correctness, opening, closing or
    tidiness). KeyError for another attribute, ValueError for a prompt that is not the world's."""
    return true_attributes(prompt, draft)[attribute] < 1.0


def edit(rng: random.Random, prompt: Prompt, draft: Completion, attribute: str, slip: float) -> str | None:
    """The editor's revision of a draft under one principle; None where it meets the principle.

    He changes nothing that the principle does not speak of. A wrong answer is written again with care, and with a
    demonstrator's ``slip``. Raises as ``breaks``, and ValueError for an attribute that he cannot mend.
    """
    if not breaks(prompt, draft, attribute):
        return None
    words = draft.text.split()
    opened = words[:1] if words and words[0] in OPENERS else []
    closed = words[-1:] if len(words) > 1 and words[-1] == CLOSER else []
    inner = words[len(opened) : len(words) - len(closed)]
    match attribute:
        case "correctness":
            careful = Demonstrator(careful=1.0, slip=slip, opener=0.0, closer=0.0, filler=0.0)
            return " ".join([*opened, demonstrate(rng, prompt, careful), *closed])
        case "opening":
            refuses = " ".join(word for word in words if word not in STYLE_WORDS).startswith("i can not")
            return " ".join(["sorry" if refuses else "sure", *words])
        case "closing":
            return " ".join([*words, CLOSER])
        case "tidiness":
            return " ".join([*opened, *(word for word in inner if word not in STYLE_WORDS), *closed])
        case other:
            raise ValueError(f"attribute {other!r}: the editor cannot mend it")


@dataclass(frozen=True)
class RevisionMarkers:
    """Token ids beyond the tokenizer's vocabulary: a principle's token asks, ``meets`` and ``breaks`` answer."""

    correctness: int
    opening: int
    closing: int
    tidiness: int
    meets: int
    breaks: int

    @classmethod
    def after(cls, rows: int) -> RevisionMarkers:
        """The ids that follow the ``rows`` of an embedding."""
        return cls(*range(rows, rows + 6))

    def of(self, attribute: str) -> int:
        """The token of the principle that speaks of ``attribute``. KeyError for one that no principle speaks of."""
        return asdict(self)[attribute]  # type: ignore[no-any-return]

    def write(self, path: Path) -> None:
        """``path`` as JSON."""
        path.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> RevisionMarkers:
        """What ``write`` wrote. Raises ValueError if ``path`` is not that."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError) as error:
            raise ValueError(f"{path}: not the markers of a trained reviser: {error}") from None


def revision_ids(
    tokenizer: PreTrainedTokenizerBase,
    markers: RevisionMarkers,
    prompts: Sequence[Prompt],
    drafts: Sequence[Completion],
    attributes: Sequence[str],
) -> list[list[int]]:
    """Token ids of N requests: prompt, draft (its end where it has one), the principle's token."""
    begin = encode_prompts(tokenizer, [prompt.text for prompt in prompts])
    middle = encode_completions(tokenizer, [one.text for one in drafts], [not one.truncated for one in drafts])
    return [
        [*prompt, *draft, markers.of(attribute)]
        for prompt, draft, attribute in zip(begin, middle, attributes, strict=True)
    ]
