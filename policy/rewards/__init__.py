"""Rewards of a policy's responses."""
