"""Responses in files, and who wins."""
