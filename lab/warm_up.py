"""Imports what most stages need, so that an idle worker has paid for it before its first step."""

import gc

import torch
import transformers
import trl
from trl import DPOTrainer, GRPOTrainer, RewardTrainer, SFTTrainer

__all__ = ["DPOTrainer", "GRPOTrainer", "RewardTrainer", "SFTTrainer", "torch", "transformers", "trl"]

# accelerate collects garbage around every training; a million objects that will never be garbage cost half a second.
gc.collect()
gc.freeze()
