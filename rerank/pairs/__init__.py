"""Chosen and rejected pairs from sampled responses, for training."""
