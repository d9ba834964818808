"""Evaluation of a run: how accurate it is, for which users, and after how many comparisons."""
