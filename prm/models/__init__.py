"""Backbones, and the two models on top of them: the reward model and the policy."""
