"""Seconds a GRPO step: the lab's trainer with ``advantage="group"`` against the stock ``GRPOTrainer`` it stands on.

    python benchmarks/bench_grpo.py

Stock runs twice: as it is, sampling by ``model.generate``; and with the lab's sampler as its ``rollout_func``, so that
the rollout is the same work and only the trainers differ. All three pay the same trivial reward, keep a reference and a
KL term in the loss, and take one optimizer step a rollout on completions of exactly 64 tokens, float32, one thread.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import turns

HERE = Path(__file__).resolve().parent
GROUP = 8
KINDS = {"stock": "stock", "stock-lab-sampler": "stock, lab's sampler", "lab": "lab"}


def pay(texts: Sequence[str]) -> list[float]:
    """A reward that costs nothing and differs within a group."""
    return [len(text) / 100 for text in texts]


def work_lab(arguments: argparse.Namespace, turn: turns.Turn, texts: list[str]) -> None:
    import numpy as np
    import tiny

    from lab.config import OnlineMethod
    from lab.online.trainer import OnlineTrainer
    from lab.records import Completion, Prompt

    steps = turns.optimizer_steps()

    class Trivial:
        name = "trivial"

        def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
            return np.array(pay([completion.text for completion in completions]))

    trainer = OnlineTrainer(
        arguments.models / "policy",
        OnlineMethod(
            kind="online",
            advantage="group",
            steps=arguments.rollouts,
            prompts_per_rollout=len(texts),
            completions_per_prompt=GROUP,
            learning_rate=1e-6,
            warmup_steps=0,
            kl_coefficient=0.04,
            kl_in="loss",
            max_completion_length=tiny.NEW_TOKENS,
        ),
        [Prompt(text, "math", 0) for text in texts],
        Trivial(),
        seed=0,
        folder=Path(tempfile.mkdtemp()),
        progress=lambda *_: turn(steps()),
    )
    turn.start()
    trainer.run()


def work_stock(arguments: argparse.Namespace, turn: turns.Turn, texts: list[str]) -> None:
    import tiny
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from lab.models import encode_prompt
    from lab.sampling import sample

    steps = turns.optimizer_steps()

    class AtRolloutEnd(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            turn(steps())

    def reward(completions: list[str], **_: object) -> list[float]:
        return pay(completions)

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        ids = [encode_prompt(trainer.processing_class, text) for text in prompts]
        samples = sample(
            trainer.model,
            ids,
            seeds=[trainer.state.global_step * len(ids) + row for row in range(len(ids))],
            max_new_tokens=tiny.NEW_TOKENS,
            eos_token_id=tiny.SPECIAL["eos"],
            pad_token_id=tiny.SPECIAL["pad"],
        )
        return {
            "prompt_ids": ids,
            "completion_ids": [row.ids for row in samples],
            "logprobs": [row.logprobs for row in samples],
        }

    trainer = GRPOTrainer(
        model=str(arguments.models / "policy"),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            learning_rate=1e-6,
            max_steps=arguments.rollouts,
            per_device_train_batch_size=arguments.batch,
            steps_per_generation=1,
            num_generations=GROUP,
            max_completion_length=tiny.NEW_TOKENS,
            beta=0.04,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tiny.tokenizer(),
        rollout_func=rollout if arguments.worker == "stock-lab-sampler" else None,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(AtRolloutEnd())
    turn.start()
    trainer.train()


def work(arguments: argparse.Namespace) -> None:
    import tiny
    import torch

    torch.set_num_threads(1)
    turn = turns.Turn()
    texts = tiny.prompts(arguments.batch // GROUP)
    (work_lab if arguments.worker == "lab" else work_stock)(arguments, turn, texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 64, 512], help="completions a rollout")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--worker", choices=list(KINDS), help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rollouts", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run([sys.executable, str(HERE / "tiny.py"), str(folder)], check=True)
        for batch in arguments.batches:
            rollouts = arguments.warm_up + arguments.repetitions + 1
            options = ["--models", str(folder), "--batch", str(batch), "--rollouts", str(rollouts)]
            timings = turns.run_in_turns(
                {name: [sys.executable, __file__, "--worker", kind, *options] for kind, name in KINDS.items()},
                arguments.warm_up,
                arguments.repetitions,
                folder,
            )
            rows += turns.compare(timings, f"{batch}", [KINDS["stock"], KINDS["stock-lab-sampler"]])
    print(f"GRPO: groups of {GROUP}, one optimizer step a rollout, median of {arguments.repetitions}")
    turns.print_table(
        ["completions", "optimizer steps", "trainer", "seconds a rollout", "to stock", "same sampler"], rows
    )


if __name__ == "__main__":
    main()
