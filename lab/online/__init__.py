"""Online alignment: the trainer of PPO, GRPO and RLOO (``trainer``), its critic, and what a rollout is made of."""
