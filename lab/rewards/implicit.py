"""A policy trained by DPO is a reward model too: what it says of a completion against where it started.

Rafailov et al. 2023 (arXiv:2305.18290, eq. 5) solve the KL-constrained objective for the reward:

    r(x, y) = beta * log(pi(y|x) / pi_ref(y|x)) + beta * log Z(x)

Z(x) cancels among completions of one prompt and beta only scales, so the score here is the log-ratio alone, as
RewardBench scores DPO models (Lambert et al. 2024, arXiv:2403.13787, section 3.2). Its reference-free variants drop
pi_ref. This is not an estimate of the reward across prompts: Z(x) differs from one to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from lab.models import completion_logprobs, encode_completions, encode_prompts, load_policy
from lab.records import Completion, Prompt
from lab.rewards.source import Detail

Variant = Literal["log_ratio", "sum", "average", "norm"]


def reduce_logprobs(logprobs_T: np.ndarray, variant: Variant) -> float:
    """One score from the values of a completion's T tokens: log-ratios (``log_ratio``) or log-probabilities, in nats.

    log_ratio, sum: their sum; average: their mean; norm: minus their Euclidean norm, which is what RewardBench's
    reference-free "norm" computes (``rewardbench/dpo.py``): a single very unlikely token costs more than many unlikely
    ones. Without tokens the sums are 0 and the mean is unknown (NaN).
    """
    match variant:
        case "log_ratio" | "sum":
            return float(logprobs_T.sum())
        case "average":
            return float(logprobs_T.mean()) if len(logprobs_T) else float("nan")
        case "norm":
            return -float(np.sqrt((logprobs_T**2).sum()))


def token_values(
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
) -> list[np.ndarray]:
    """log pi(token) - log pi_ref(token) of every completion token, float64 (T,) a row; log pi if reference is None."""
    values = [row.double().numpy() for row in completion_logprobs(policy, prompt_ids, completion_ids)]
    if reference is None:
        return values
    subtracted = completion_logprobs(reference, prompt_ids, completion_ids)
    return [row - other.double().numpy() for row, other in zip(values, subtracted, strict=True)]


class ImplicitReward:
    """weight * (raw - shift) / scale, raw by ``variant`` from the policy's (and the reference's) log-probabilities.

    Both artifacts hold ``final/``. The end-of-sequence token counts where the completion reached it. A completion that
    was cut off before its first token sums to 0. Raises ValueError if the two do not share one vocabulary: a ratio of
    probabilities of different tokens means nothing.
    """

    name = "implicit"

    def __init__(
        self,
        policy_artifact: Path,
        reference_artifact: Path,
        normalisation: tuple[float, float],
        device: str | torch.device,
        weight: float = 1.0,
        variant: Variant = "log_ratio",
    ) -> None:
        self.policy, self.tokenizer = load_policy(policy_artifact / "final", device)
        self.reference: PreTrainedModel | None = None
        if variant == "log_ratio":
            self.reference, tokenizer = load_policy(reference_artifact / "final", device)
            if tokenizer.get_vocab() != self.tokenizer.get_vocab():
                raise ValueError(
                    f"{policy_artifact} and {reference_artifact}: policy and reference have different vocabularies, "
                    "so the ratio of their probabilities has no meaning"
                )
        (self.shift, self.scale), self.weight, self.variant = normalisation, weight, variant

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        """Normalised scores (N,)."""
        raw = [reduce_logprobs(values, self.variant) for values in self._values(prompts, completions)[0]]
        return self.weight * (np.array(raw, dtype=float) - self.shift) / self.scale

    def detail(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Detail]:
        """The log-ratio of every token (its log-probability where the variant has no reference), in nats."""
        values, ids = self._values(prompts, completions)
        texts = [self.tokenizer.batch_decode([[token] for token in row]) for row in ids]
        return [Detail("token", tuple(t), tuple(map(float, row))) for t, row in zip(texts, values, strict=True)]

    def _values(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion]
    ) -> tuple[list[np.ndarray], list[list[int]]]:
        begin = encode_prompts(self.tokenizer, [prompt.text for prompt in prompts])
        end = encode_completions(self.tokenizer, [c.text for c in completions], [not c.truncated for c in completions])
        return token_values(self.policy, self.reference, begin, end), end
