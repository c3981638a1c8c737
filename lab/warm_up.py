"""Imports what most stages need, so that an idle worker has paid for it before its first step."""

import torch
import transformers
import trl  # noqa: F401
from trl import DPOTrainer, GRPOTrainer, RewardTrainer, SFTTrainer

__all__ = ["DPOTrainer", "GRPOTrainer", "RewardTrainer", "SFTTrainer", "torch", "transformers"]
