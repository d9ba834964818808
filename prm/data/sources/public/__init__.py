"""Public data sets, each read in one file."""
