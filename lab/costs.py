"""What computation costs: pure arithmetic on counts, no torch. FLOPs are estimates from parameters and tokens.

``parameters`` is the non-embedding count N of Kaplan et al. 2020 (arXiv:2001.08361, section 2.1): token tables, and the
output matrix with them, are left out. ``tokens`` are real ones; padding is an implementation's waste, not a cost.
"""

from __future__ import annotations


def forward_flops(parameters: int, tokens: float) -> float:
    """About 2 N FLOPs a token; also what sampling one token with a key-value cache costs."""
    return 2.0 * parameters * tokens


def training_flops(parameters: int, tokens: float, epochs: float = 1) -> float:
    """Forward and backward: about 6 N FLOPs a token and epoch."""
    return 6.0 * parameters * tokens * epochs
