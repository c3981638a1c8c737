"""The private names of TRL that the online trainer stands on, in one place, with what it expects of each.

TRL promises nothing about them. `moved` compares the installed TRL with this list, and both a test and the trainer's
constructor call it: an upgrade that moves something fails with its name, not with a silent change of algorithm.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import CodeType

from trl import GRPOTrainer

METHODS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("_prepare_inputs", ("self", "generation_batch"), "generates once a rollout, buffers, shuffles, cuts minibatches"),
    ("_generate_and_score_completions", ("self", "inputs"), "overridden: rollout, reward, reference, advantages"),
    ("_generate", ("self", "prompts"), "calls rollout_func, decodes, counts tokens; returns eight values"),
    (
        "_get_per_token_logps_and_entropies",
        ("self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"),
        "log-probabilities of the reference and, when they must be recomputed, of the old policy",
    ),
    ("_compute_loss", ("self", "model", "inputs"), "the clipped policy loss; takes advantages of shape (B,) or (B, T)"),
    ("_save_checkpoint", ("self", "model", "trial"), "extended with this lab's own state"),
)
"""(method of GRPOTrainer, its first parameters, what it is relied upon for)."""

ATTRIBUTES: tuple[str, ...] = ("ref_model", "beta", "_metrics", "_step", "eos_token_ids", "rollout_func")
"""What GRPOTrainer's constructor sets and the online trainer reads or writes."""

BATCH_KEYS: tuple[str, ...] = (
    "prompt_ids",
    "prompt_mask",
    "completion_ids",
    "completion_mask",
    "tool_mask",
    "advantages",
    "num_items_in_batch",
    "old_per_token_logps",
    "ref_per_token_logps",
)
"""Keys of the batch that the online trainer builds and `_compute_loss` reads; `tool_mask` drops rows from the loss."""

METRICS: tuple[str, ...] = ("entropy", "clip_ratio/region_mean")
"""What `_compute_loss` records and the trace copies."""


def moved(trainer: type = GRPOTrainer) -> list[str]:
    """One line for each relied-upon name that ``trainer`` no longer has as expected; empty if all is well."""
    problems = []
    for name, expected, purpose in METHODS:
        method = trainer.__dict__.get(name)
        if method is None:
            problems.append(f"{trainer.__name__}.{name} is gone ({purpose})")
            continue
        found = tuple(inspect.signature(method).parameters)
        if found[: len(expected)] != expected:
            problems.append(f"{trainer.__name__}.{name} takes {found}, expected {expected} first ({purpose})")
    set_by_constructor = _code(trainer.__dict__["__init__"]).co_names
    problems += [
        f"{trainer.__name__}.__init__ no longer sets {name}" for name in ATTRIBUTES if name not in set_by_constructor
    ]
    if "_compute_loss" in trainer.__dict__:
        strings = _strings(_code(trainer.__dict__["_compute_loss"]))
        problems += [
            f"{trainer.__name__}._compute_loss no longer mentions {key!r}"
            for key in BATCH_KEYS + METRICS
            if key not in strings
        ]
    return problems


def require_unmoved() -> None:
    """Raise ImportError listing what the installed TRL moved, if anything."""
    problems = moved()
    if problems:
        import trl

        raise ImportError(f"trl {trl.__version__} moved what the online trainer relies on: " + "; ".join(problems))


def _code(function: Callable[..., object]) -> CodeType:
    return inspect.unwrap(function).__code__


def _strings(code: CodeType) -> set[str]:
    """String constants of a code object, those of comprehensions and inner tuples included."""
    found: set[str] = set()
    pending = list(code.co_consts)
    while pending:
        constant = pending.pop()
        if isinstance(constant, str):
            found.add(constant)
        elif isinstance(constant, (tuple, frozenset)):
            pending += constant
        elif inspect.iscode(constant):
            pending += constant.co_consts
    return found
