"""Reward-model benchmarks: items, where they are read from, and how they are scored. No torch, no figures."""
