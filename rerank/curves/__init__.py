"""Best-of-N curves: gain and win rate as a function of N."""
