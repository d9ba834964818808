"""Public data sets, one module each."""
