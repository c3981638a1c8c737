"""A reward of several objectives on a frozen backbone (ArmoRM, Wang et al. 2024, arXiv:2406.12845).

    r_k = w_k . h(prompt + completion) + b_k          ridge regression on ratings of attribute k
    r'_k = r_k - lambda_k (length - mean length)      verbosity taken out
    reward = sum_k g_k(prompt) r'_k                   g: softmax of a small network on the prompt's own hidden state

Unlike ArmoRM, which subtracts a predicted verbosity until a rank correlation vanishes, this subtracts the number of
tokens itself: it can be counted, and then lambda_k has a closed form and the correlation is exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lab.models import encode_completions, encode_prompts, load_policy
from lab.records import Completion, Prompt
from lab.rewards.source import Detail, read_normalisation

HEADS = "heads.safetensors"

# ---------------------------------------------------------------- pure functions


def ridge(features_NH: np.ndarray, targets_NK: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """(weights (K, H), intercepts (K,)) that minimise |Y - X W' - b|^2 + penalty |W|^2; intercepts are free.

    Raises ValueError unless ``penalty`` is positive: features of a wide model are collinear.
    """
    if not penalty > 0:
        raise ValueError(f"ridge: expected a positive penalty, got {penalty}")
    features, targets = np.asarray(features_NH, dtype=float), np.asarray(targets_NK, dtype=float)
    centre, mean = features.mean(axis=0), targets.mean(axis=0)
    moved = features - centre
    gram_HH = moved.T @ moved + penalty * np.eye(features.shape[1])
    weights_KH = np.linalg.solve(gram_HH, moved.T @ (targets - mean)).T
    return weights_KH, mean - weights_KH @ centre


def length_slopes(scores_NK: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
    """lambda (K,) = cov(r_k, length) / var(length): with r_k - lambda_k length no correlation with length is left.

    0 if all lengths are equal.
    """
    lengths = np.asarray(lengths_N, dtype=float) - np.mean(lengths_N)
    variance = lengths @ lengths
    if variance == 0:
        return np.zeros(np.shape(scores_NK)[1])
    return lengths @ (scores_NK - np.mean(scores_NK, axis=0)) / variance


# ---------------------------------------------------------------- features


@dataclass(frozen=True)
class Features:
    """Hidden states at the last token of prompt + completion (``whole`` (N, H)) and of the prompt (``prompt`` (N, H)),
    both float32 on the CPU; the completions' ``lengths`` (N,) in tokens; ``tokens``: how many were read in all."""

    whole: Tensor
    prompt: Tensor
    lengths: Tensor
    tokens: int

    def at(self, rows: Tensor) -> Features:
        """The features of these rows."""
        return Features(self.whole[rows], self.prompt[rows], self.lengths[rows], self.tokens)


@torch.no_grad()
def read_features(
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    batch_size: int = 256,
) -> Features:
    """The backbone's features of N completions, after its last norm. The end of sequence is read where it was reached.

    Rows are batched by length and padded on the right, where a causal model's real tokens do not look.
    """
    begin = encode_prompts(tokenizer, [prompt.text for prompt in prompts])
    end = encode_completions(tokenizer, [c.text for c in completions], [not c.truncated for c in completions])
    rows = [a + b for a, b in zip(begin, end, strict=True)]
    hidden = backbone.config.get_text_config().hidden_size
    whole, prompt = torch.zeros(len(rows), hidden), torch.zeros(len(rows), hidden)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids = torch.zeros(len(chosen), len(rows[chosen[-1]]), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for line, row in enumerate(chosen):
            ids[line, : len(rows[row])], mask[line, : len(rows[row])] = torch.tensor(rows[row]), 1
        states_BTH = backbone.base_model(
            input_ids=ids.to(backbone.device), attention_mask=mask.to(backbone.device), use_cache=False
        ).last_hidden_state
        lines = torch.arange(len(chosen))
        whole[chosen] = states_BTH[lines, [len(rows[row]) - 1 for row in chosen]].float().cpu()
        prompt[chosen] = states_BTH[lines, [len(begin[row]) - 1 for row in chosen]].float().cpu()
    lengths = torch.tensor([len(ids) for ids in end], dtype=torch.float)
    return Features(whole, prompt, lengths, sum(map(len, rows)))


# ---------------------------------------------------------------- heads


class Heads(nn.Module):
    """Regressions, length slopes and gate on features of width ``hidden``; K = len(attributes).

    Everything but the gate and its temperature is a buffer: found in closed form, not by gradient.
    """

    weight: Tensor
    bias: Tensor
    slopes: Tensor
    mean_length: Tensor
    prompt_mean: Tensor
    prompt_spread: Tensor

    def __init__(self, attributes: Sequence[str], hidden: int, gate_hidden: int, seed: int = 0) -> None:
        super().__init__()
        self.attributes, count = tuple(attributes), len(attributes)
        self.register_buffer("weight", torch.zeros(count, hidden))
        self.register_buffer("bias", torch.zeros(count))
        self.register_buffer("slopes", torch.zeros(count))
        self.register_buffer("mean_length", torch.zeros(()))
        self.register_buffer("prompt_mean", torch.zeros(hidden))
        self.register_buffer("prompt_spread", torch.ones(hidden))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.gate = nn.Sequential(nn.Linear(hidden, gate_hidden), nn.ReLU(), nn.Linear(gate_hidden, count))
        self.log_scale = nn.Parameter(torch.zeros(()))  # of the margin in the Bradley-Terry loss; not of the reward

    def regressed(self, features: Features) -> Tensor:
        """Attribute scores r (N, K) as regressed."""
        return features.whole @ self.weight.T + self.bias

    def attribute_scores(self, features: Features) -> Tensor:
        """Attribute scores r' (N, K), verbosity taken out."""
        return self.regressed(features) - (features.lengths - self.mean_length)[:, None] * self.slopes

    def gate_weights(self, features: Features) -> Tensor:
        """g (N, K): positive, summing to 1, a function of the prompt alone."""
        return torch.softmax(self.gate((features.prompt - self.prompt_mean) / self.prompt_spread), dim=1)

    def forward(self, features: Features) -> Tensor:
        """Rewards (N,)."""
        return (self.gate_weights(features) * self.attribute_scores(features)).sum(dim=1)

    def save(self, folder: Path) -> None:
        """``heads.safetensors`` with the attributes' names among its metadata."""
        save_file(
            {name: value.contiguous() for name, value in self.state_dict().items()},
            folder / HEADS,
            metadata={"attributes": ",".join(self.attributes)},
        )

    @classmethod
    def load(cls, folder: Path) -> Heads:
        """What ``save`` wrote. Raises ValueError naming the file if it holds no attributes."""
        with safe_open(folder / HEADS, framework="pt") as file:
            names = (file.metadata() or {}).get("attributes")
            if not names:
                raise ValueError(f"{folder / HEADS}: its metadata names no attributes")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        heads = cls(names.split(","), state["weight"].shape[1], state["gate.0.weight"].shape[0])
        heads.load_state_dict(state)
        return heads.eval()


class MultiObjectiveReward:
    """weight * (reward - shift) / scale: 0 and ``weight`` are mean and spread on the SFT policy's samples."""

    name = "multi_objective"

    def __init__(self, artifact: Path, device: str | torch.device, weight: float = 1.0) -> None:
        self.backbone, self.tokenizer = load_policy(artifact / "final", device)
        self.heads = Heads.load(artifact)
        self.shift, self.scale = read_normalisation(artifact)
        self.weight = weight

    def _features(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Features:
        return read_features(self.backbone, self.tokenizer, prompts, completions)

    @torch.no_grad()
    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        """Scores (N,)."""
        raw = self.heads(self._features(prompts, completions)).double().numpy()
        return self.weight * (raw - self.shift) / self.scale

    @torch.no_grad()
    def detail(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Detail]:
        """The attribute scores r' of each completion, on the scale of the ratings."""
        scores_NK = self.heads.attribute_scores(self._features(prompts, completions)).double().tolist()
        return [Detail("attribute", self.heads.attributes, tuple(row)) for row in scores_NK]

    @torch.no_grad()
    def gate_weights(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """How the gate weighs the attributes for each prompt: (N, K), rows sum to 1."""
        nothing = [Completion(prompt.id, 0, "", 0, truncated=True) for prompt in prompts]
        return self.heads.gate_weights(self._features(prompts, nothing)).double().numpy()
