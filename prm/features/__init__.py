"""Hidden states and log-probabilities of a frozen backbone, computed once and cached on disk."""
