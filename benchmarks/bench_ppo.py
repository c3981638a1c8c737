"""Seconds a PPO rollout and its updates: the lab's trainer against the last ``PPOTrainer`` that TRL had (1.12.0).

    python benchmarks/bench_ppo.py --trl112-python FOLDER/bin/python      # an environment that has trl==1.12.0
    python benchmarks/bench_ppo.py --trl112-create FOLDER                 # or let it be made: torch, trl 1.12.0

The work is the same: one policy of 1.07 M parameters and a reward model, reference (and, where it is one of its own,
critic) of that size; each prompt twice; every completion of exactly 64 tokens; the same epochs of the same number of
minibatches, hence of optimizer steps, which are counted in both processes and compared. Both are float32 on one thread.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path

import turns

HERE = Path(__file__).resolve().parent


def create_environment(folder: Path) -> Path:
    """A virtual environment with TRL 1.12.0 and, for the rest, the versions of this one. Returns its python."""
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    names = ("transformers", "accelerate", "datasets", "numpy")
    same = [f"{name}=={importlib.metadata.version(name)}" for name in names]
    torch = "torch==" + importlib.metadata.version("torch").partition("+")[0]
    for packages in ([torch], ["trl==1.12.0", *same]):
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def work(arguments: argparse.Namespace) -> None:
    """The lab's side, in a process of its own."""
    import tiny
    import torch

    from lab.config import OnlineMethod
    from lab.online.trainer import OnlineTrainer
    from lab.records import Prompt
    from lab.rewards import load_reward

    torch.set_num_threads(1)
    turn, steps = turns.Turn(), turns.optimizer_steps()
    method = OnlineMethod(
        kind="online",
        advantage="gae",
        critic=arguments.worker,
        steps=arguments.rollouts,
        prompts_per_rollout=arguments.batch // 2,
        completions_per_prompt=2,
        epochs=arguments.epochs,
        minibatches=arguments.minibatches,
        learning_rate=1e-6,
        warmup_steps=0,
        kl_coefficient=0.05,
        max_completion_length=tiny.NEW_TOKENS,
    )
    trainer = OnlineTrainer(
        arguments.models / "policy",
        method,
        [Prompt(text, "math", 0) for text in tiny.prompts(arguments.batch // 2)],
        load_reward({"kind": "classifier"}, {"reward_model": arguments.models / "reward"}, "cpu"),
        seed=0,
        folder=Path(tempfile.mkdtemp()),
        critic_checkpoint=arguments.models / "reward" / "final",
        progress=lambda *_: turn(steps()),
    )
    turn.start()
    trainer.run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl112-python", type=Path, help="python of an environment that has trl==1.12.0")
    parser.add_argument("--trl112-create", type=Path, metavar="FOLDER", help="make that environment in FOLDER first")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 64], help="completions a rollout")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--worker", choices=["trunk", "own"], help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rollouts", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)
    if (arguments.trl112_python is None) == (arguments.trl112_create is None):
        parser.error("give one of --trl112-python and --trl112-create")
    python = arguments.trl112_python or create_environment(arguments.trl112_create)

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run([sys.executable, str(HERE / "tiny.py"), str(folder)], check=True)
        for batch in arguments.batches:
            shared = {
                "--models": folder,
                "--batch": batch,
                "--epochs": arguments.epochs,
                "--minibatches": arguments.minibatches,
                "--rollouts": arguments.warm_up + arguments.repetitions + 1,
            }
            options = [str(word) for pair in shared.items() for word in pair]
            timings = turns.run_in_turns(
                {
                    "TRL 1.12.0": [str(python), str(HERE / "trl112_ppo.py"), *options],
                    "lab, own critic": [sys.executable, __file__, "--worker", "own", *options],
                    "lab, value head on the trunk": [sys.executable, __file__, "--worker", "trunk", *options],
                },
                arguments.warm_up,
                arguments.repetitions,
                folder,
            )
            rows += turns.compare(timings, f"{batch}", ["TRL 1.12.0"])
    print(f"PPO, {arguments.epochs} epochs of {arguments.minibatches} minibatches, median of {arguments.repetitions}")
    turns.print_table(["completions", "optimizer steps", "trainer", "seconds a rollout", "ratio"], rows)


if __name__ == "__main__":
    main()
