"""Rewards of a trained model, and its users: added, updated, forgotten."""
