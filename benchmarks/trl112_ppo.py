"""A worker of bench_ppo.py: ``PPOTrainer`` of TRL 1.12.0, the last release that had one. Runs in its environment."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import tiny
import torch
import turns
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--minibatches", type=int, required=True)
    parser.add_argument("--rollouts", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    turn, steps = turns.Turn(), turns.optimizer_steps()

    class AtRolloutEnd(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            turn(steps())

    tokenizer = AutoTokenizer.from_pretrained(arguments.models / "policy")
    # Each prompt twice, as the lab's trainer has at least two completions a prompt.
    texts = [text for text in tiny.prompts(arguments.batch // 2) for _ in range(2)]
    folder = tempfile.mkdtemp()
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=folder,
            # Real minibatches: `num_mini_batches` cuts the batch, but an optimizer step is taken only every
            # `gradient_accumulation_steps` micro-batches. With 1 of those, and micro-batches at least as large as a
            # minibatch, it is one step a minibatch. The driver counts them.
            per_device_train_batch_size=arguments.batch,
            gradient_accumulation_steps=1,
            num_mini_batches=arguments.minibatches,
            num_ppo_epochs=arguments.epochs,
            total_episodes=arguments.batch * arguments.rollouts,
            local_rollout_forward_batch_size=arguments.batch,
            response_length=tiny.NEW_TOKENS,
            temperature=1.0,
            learning_rate=1e-6,
            num_sample_generations=0,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=0,
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(arguments.models / "policy"),
        ref_model=AutoModelForCausalLM.from_pretrained(arguments.models / "policy"),
        reward_model=AutoModelForSequenceClassification.from_pretrained(arguments.models / "reward" / "final"),
        value_model=AutoModelForSequenceClassification.from_pretrained(arguments.models / "reward" / "final"),
        train_dataset=Dataset.from_dict({"input_ids": tokenizer(texts)["input_ids"]}),
        callbacks=[AtRolloutEnd()],
    )
    turn.start()
    trainer.train()


if __name__ == "__main__":
    main()
