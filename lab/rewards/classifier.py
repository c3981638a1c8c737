"""A Bradley-Terry reward model as a reward source."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lab.models import encode_completions, encode_prompts, load_classifier
from lab.records import Completion, Prompt


@torch.no_grad()
def raw_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]], batch_size: int = 256
) -> np.ndarray:
    """The classifier's one logit for each row of token ids: (N,) float64.

    Rows are batched by length and padded on the right. Raises ValueError if padding and end of sequence share an id:
    the classifier reads the last token that is not padding, and would then not see the end.
    """
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ValueError(f"{tokenizer.name_or_path}: pad and end-of-sequence are the same token; give padding its own")
    scores = np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids = torch.full((len(chosen), len(rows[chosen[-1]])), tokenizer.pad_token_id)
        for line, row in enumerate(chosen):
            ids[line, : len(rows[row])] = torch.tensor(rows[row])
        ids = ids.to(model.device)
        logits = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), use_cache=False).logits
        scores[chosen] = logits.float().squeeze(-1).cpu().numpy()
    return scores


class ClassifierReward:
    """(raw score - shift) / scale of a trained classifier: 0 and 1 are mean and spread on the SFT policy's samples.

    ``weight`` multiplies that.
    """

    name = "reward_model"

    def __init__(self, artifact: Path, device: str | torch.device, weight: float = 1.0) -> None:
        self.model, self.tokenizer = load_classifier(artifact / "final", device)
        normalisation = json.loads((artifact / "normalisation.json").read_text(encoding="utf-8"))
        self.shift, self.scale, self.weight = normalisation["shift"], normalisation["scale"], weight

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        """Normalised scores (N,). The end-of-sequence token is scored only where the completion reached it."""
        begin = encode_prompts(self.tokenizer, [prompt.text for prompt in prompts])
        end = encode_completions(self.tokenizer, [c.text for c in completions], [not c.truncated for c in completions])
        raw = raw_scores(self.model, self.tokenizer, [a + b for a, b in zip(begin, end, strict=True)])
        return self.weight * (raw - self.shift) / self.scale
