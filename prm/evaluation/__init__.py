"""How good a run is, for whom, and from how many comparisons."""
