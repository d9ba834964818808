"""Comparisons: the record, where it is read from, how it is split and turned into ids. No torch here."""
