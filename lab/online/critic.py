"""The critic of PPO: a value for each position, from the policy's own trunk or from a model of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from lab.models import check_checkpoint, load_classifier, load_tokenizer


class Critic(nn.Module):
    """v(s_t) = w . h_t + b, where h_t is the trunk's state that also predicts completion token t.

    On the trunk (``backbone`` None) the hidden states of the policy's own forward pass are used, so that values cost
    almost nothing and the value loss trains the trunk too. The head starts at zero: the first values are 0, and the
    first advantages those of plain returns.
    """

    def __init__(self, hidden: int, backbone: PreTrainedModel | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(hidden, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def build(
        cls,
        kind: str,
        policy: PreTrainedModel,
        checkpoint: Path,
        tokenizer: PreTrainedTokenizerBase,
        shift: float = 0.0,
        scale: float = 1.0,
    ) -> Critic:
        """``kind`` "trunk", or "own": initialised from ``checkpoint``, a causal model or a reward model.

        A reward model's head becomes the first value head, of scores (raw - ``shift``) / ``scale``. Raises ValueError
        if the checkpoint's vocabulary is not the policy's.
        """
        if kind == "trunk":
            return cls(policy.config.get_text_config().hidden_size)
        if kind != "own":
            raise ValueError(f"method.critic: expected trunk or own, got {kind!r}")
        check_checkpoint(checkpoint)
        if load_tokenizer(checkpoint).get_vocab() != tokenizer.get_vocab():
            raise ValueError(f"{checkpoint}: its vocabulary is not the policy's, so it cannot start the critic")
        backbone: PreTrainedModel = AutoModel.from_pretrained(
            str(checkpoint), dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
        backbone.config.use_cache = False
        critic = cls(backbone.config.get_text_config().hidden_size, backbone)
        if any("SequenceClassification" in name for name in backbone.config.architectures or ()):
            classifier, _ = load_classifier(checkpoint)
            with torch.no_grad():
                critic.head.weight.copy_(classifier.score.weight / scale)
                critic.head.bias.fill_(-shift / scale)
        return critic

    @property
    def on_trunk(self) -> bool:
        return self.backbone is None

    @property
    def parameter_count(self) -> int:
        """Parameters of a critic's own backbone without its embeddings; 0 on the trunk."""
        if self.backbone is None:
            return 0
        embeddings = self.backbone.get_input_embeddings().weight.numel()
        return sum(p.numel() for p in self.backbone.parameters()) - embeddings

    def forward(
        self, ids_BS: Tensor, attention_BS: Tensor, completion_length: int, hidden_BSH: Tensor | None
    ) -> Tensor:
        """Values (B, T) at the positions that predict the T completion tokens, the last columns of ``ids_BS``."""
        if self.backbone is not None:
            hidden_BSH = self.backbone(input_ids=ids_BS, attention_mask=attention_BS).last_hidden_state
        if hidden_BSH is None:
            raise ValueError("a critic on the trunk needs the hidden states of the policy's forward pass")
        states_BTH = hidden_BSH[:, -completion_length - 1 : -1]
        return self.head(states_BTH.to(self.head.weight.dtype)).squeeze(-1)


def learn_faster(optimizer: torch.optim.Optimizer, critic: Critic, factor: float) -> None:
    """Move the critic's weights into groups of their own, at ``factor`` times their group's learning rate."""
    own = {id(weight) for weight in critic.parameters()}
    for group in list(optimizer.param_groups):
        critics = [weight for weight in group["params"] if id(weight) in own]
        if critics and len(critics) < len(group["params"]):
            group["params"] = [weight for weight in group["params"] if id(weight) not in own]
            optimizer.add_param_group({**group, "params": critics, "lr": group["lr"] * factor})
        elif critics:
            group["lr"] *= factor


@contextmanager
def captured_hidden_states(model: PreTrainedModel, wanted: bool) -> Iterator[list[Tensor]]:
    """The trunk's last hidden states (B, S, H), final norm applied, of each forward pass inside the block."""
    captured: list[Tensor] = []
    if not wanted:
        yield captured
        return
    handle = model.base_model.register_forward_hook(lambda *call: captured.append(call[-1].last_hidden_state))
    try:
        yield captured
    finally:
        handle.remove()
