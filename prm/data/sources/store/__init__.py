"""The database of the live service (`rerank serve`): its tables, and its comparisons as a log to train on."""
