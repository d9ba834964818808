"""From comparisons to a trained reward model."""
