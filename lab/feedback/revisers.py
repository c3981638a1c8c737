"""Two ways to criticise and revise a draft under a principle: a model trained to in the world, a model that reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from lab.config import Principle
from lab.feedback.constitution import critique_messages, revision_messages, without_tokens
from lab.feedback.world_editor import RevisionMarkers, revision_ids
from lab.models import (
    decode_completions,
    encode_completions,
    end_token_ids,
    load_policy,
    next_token_logprobs,
    parameter_count,
)
from lab.records import Completion, Prompt, derive_seed
from lab.sampling import sample


@dataclass(frozen=True)
class Revision:
    """What became of one draft under one principle: ``critique`` in words, ``text`` of the revision.

    ``outcome``: "revised", "kept" (the critique found nothing to mend) or "unusable" (no verdict, an empty answer, too
    long to read); ``text`` is the draft's own where it was not revised.
    """

    critique: str
    text: str
    truncated: bool
    outcome: str


class Reviser(Protocol):
    """``read`` and ``generated`` count tokens, ``parameters`` those of the model (embeddings left out)."""

    read: int
    generated: int
    parameters: int

    def revise(
        self,
        prompts: Sequence[Prompt],
        drafts: Sequence[Completion],
        principles: Sequence[Principle],
        seeds: Sequence[int],
    ) -> list[Revision]:
        """One critique and revision of each of N drafts under its principle."""
        ...


class _Sampler:
    """A model, its tokenizer and how it is sampled from; counts what it reads and writes."""

    def __init__(self, path: Path, device: str | torch.device, dtype: str, max_new_tokens: int, temperature: float):
        self.model, self.tokenizer = load_policy(path, device, dtype)
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.read, self.generated, self.parameters = 0, 0, parameter_count(self.model)
        self.ends = end_token_ids(self.model, self.tokenizer)

    def _sample(self, ids: Sequence[Sequence[int]], seeds: Sequence[int], batch: int) -> list[tuple[list[int], bool]]:
        """(token ids without their end, whether the budget ran out) of one continuation each."""
        found = sample(
            self.model,
            ids,
            seeds=seeds,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            eos_token_id=self.ends,
            pad_token_id=self.tokenizer.pad_token_id,
            batch_size=batch,
        )
        self.read += sum(map(len, ids))
        self.generated += sum(len(one.ids) for one in found)
        return [(one.ids if one.truncated else one.ids[:-1], one.truncated) for one in found]


class WorldReviserBackend(_Sampler):
    """The reviser that stage ``reviser`` trains: a verdict token, and a revision behind ``breaks``."""

    def __init__(self, artifact: Path, device: str | torch.device, max_new_tokens: int, temperature: float) -> None:
        super().__init__(artifact / "final", device, "float32", max_new_tokens, temperature)
        self.markers = RevisionMarkers.read(artifact / "markers.json")

    def revise(
        self,
        prompts: Sequence[Prompt],
        drafts: Sequence[Completion],
        principles: Sequence[Principle],
        seeds: Sequence[int],
    ) -> list[Revision]:
        """The verdict is the likelier of its two tokens, as a judge's is; behind ``breaks`` the revision is sampled."""
        asked = revision_ids(self.tokenizer, self.markers, prompts, drafts, [one.attribute for one in principles])
        logprobs = next_token_logprobs(self.model, asked, [self.markers.meets, self.markers.breaks])
        self.read += sum(map(len, asked))
        broken = [row for row, (meets, breaks) in enumerate(logprobs.tolist()) if breaks > meets]
        found = [Revision("meets", draft.text, draft.truncated, "kept") for draft in drafts]
        said = self._sample([[*asked[row], self.markers.breaks] for row in broken], [seeds[row] for row in broken], 256)
        for row, (ids, truncated) in zip(broken, said, strict=True):
            found[row] = read_revision(self.tokenizer, self.markers, ids, truncated, drafts[row])
        return found


def read_revision(
    tokenizer: PreTrainedTokenizerBase,
    markers: RevisionMarkers,
    ids: Sequence[int],
    truncated: bool,
    draft: Completion,
) -> Revision:
    """What the world's reviser wrote behind ``breaks`` (its end left out): words without a marker revise the draft."""
    if not ids or max(ids) >= min(vars(markers).values()):
        return Revision("breaks", draft.text, draft.truncated, "unusable")
    (text,) = decode_completions(tokenizer, [ids])
    return Revision("breaks", text, truncated, "revised")


class WrittenReviserBackend(_Sampler):
    """Any causal language model with a chat template: answer, critique and revision are turns of one conversation."""

    BATCH = 16

    def __init__(
        self, path: Path, device: str | torch.device, dtype: str, max_new_tokens: int, temperature: float
    ) -> None:
        super().__init__(path, device, dtype, max_new_tokens, temperature)
        self.special = [str(token) for token in self.tokenizer.all_special_tokens]

    def revise(
        self,
        prompts: Sequence[Prompt],
        drafts: Sequence[Completion],
        principles: Sequence[Principle],
        seeds: Sequence[int],
    ) -> list[Revision]:
        """Two continuations: a critique, then a revision that has it before it. Too long to read: unusable."""
        asked = [
            (self._safe(prompt.text), self._safe(draft.text), principle)
            for prompt, draft, principle in zip(prompts, drafts, principles, strict=True)
        ]
        critiques = self._answers([critique_messages(*one) for one in asked], "critique", seeds)
        turns = [
            revision_messages(*one, self._safe(critique or ""))
            for one, (critique, _) in zip(asked, critiques, strict=True)
        ]
        revisions = self._answers(turns, "revision", seeds)
        return [
            Revision(critique or "", draft.text, draft.truncated, "unusable")
            if critique is None or not (text or "").strip()
            else Revision(critique, str(text).strip(), cut, "revised")
            for draft, (critique, _), (text, cut) in zip(drafts, critiques, revisions, strict=True)
        ]

    def _answers(
        self, conversations: Sequence[list[dict[str, str]]], turn: str, seeds: Sequence[int]
    ) -> list[tuple[str | None, bool]]:
        """(text, whether it was cut off) of the next turn of each; None where the model cannot read so much."""
        rendered = [
            self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            for messages in conversations
        ]
        ids = encode_completions(self.tokenizer, rendered, [False] * len(rendered))
        limit = self.model.config.get_text_config().max_position_embeddings - self.max_new_tokens
        short = [row for row, one in enumerate(ids) if len(one) <= limit]
        found = self._sample([ids[row] for row in short], [derive_seed(turn, seeds[row]) for row in short], self.BATCH)
        answers: list[tuple[str | None, bool]] = [(None, False)] * len(conversations)
        texts = decode_completions(self.tokenizer, [one for one, _ in found])
        for row, text, (_, cut) in zip(short, texts, found, strict=True):
            answers[row] = text, cut
        return answers

    def _safe(self, text: str) -> str:
        return without_tokens(text, self.special)
