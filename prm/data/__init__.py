"""Comparisons: the record, its sources, splits, profile and encoding. Only `encoding` needs torch."""
