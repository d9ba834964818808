"""Saving and loading of trained models as run folders."""
