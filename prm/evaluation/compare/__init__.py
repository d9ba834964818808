"""User models side by side on one log: each is chosen and fitted on the same parts, and evaluated on the rest."""
