"""Tokens a second: ``lab.sampling.sample`` against ``model.generate``, the same prompts, 64 new tokens each.

    python benchmarks/bench_sampling.py

Every prompt is another, so the lab's sampler gets no help from samples that share one. It also returns the
log-probability of each token, for which ``generate`` is not asked.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable

import tiny
import torch
import turns

from lab.sampling import sample


def seconds(function: Callable[[], None]) -> float:
    gc.collect()
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = tiny.policy(0).eval()
    tokenizer = tiny.tokenizer()
    rows = []
    for batch in arguments.batches:
        ids = tokenizer(tiny.prompts(batch))["input_ids"]
        block = torch.tensor(ids)
        count = 0

        def generate(block: torch.Tensor = block) -> None:
            out = model.generate(
                input_ids=block,
                attention_mask=torch.ones_like(block),
                max_new_tokens=tiny.NEW_TOKENS,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                eos_token_id=tiny.SPECIAL["eos"],
                pad_token_id=tiny.SPECIAL["pad"],
            )
            assert out.shape == (len(block), tiny.PROMPT_LENGTH + tiny.NEW_TOKENS)

        def lab(ids: list[list[int]] = ids) -> None:
            nonlocal count
            count += 1
            samples = sample(
                model,
                ids,
                seeds=range(count * len(ids), (count + 1) * len(ids)),
                max_new_tokens=tiny.NEW_TOKENS,
                eos_token_id=tiny.SPECIAL["eos"],
                pad_token_id=tiny.SPECIAL["pad"],
            )
            assert all(len(row.ids) == tiny.NEW_TOKENS for row in samples)

        times: dict[str, list[float]] = {"model.generate": [], "lab.sampling": []}
        for repetition in range(arguments.warm_up + arguments.repetitions):
            for name, function in (("model.generate", generate), ("lab.sampling", lab)):
                took = seconds(function)
                if repetition >= arguments.warm_up:
                    times[name].append(took)
        timings = {name: turns.Timing(tuple(values), 0) for name, values in times.items()}
        for name, timing in timings.items():
            span = f"{timing.median:.3f} ({min(timing.seconds):.3f}-{max(timing.seconds):.3f})"
            speed = 1 / turns.paired_ratio(timing, timings["model.generate"])
            rows.append([f"{batch}", name, span, f"{batch * tiny.NEW_TOKENS / timing.median:,.0f}", f"{speed:.2f}x"])
    print(f"Sampling {tiny.NEW_TOKENS} tokens a prompt, median of {arguments.repetitions}")
    turns.print_table(["batch", "sampler", "seconds", "tokens a second", "speed"], rows)


if __name__ == "__main__":
    main()
