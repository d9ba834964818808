"""Where comparisons come from: one public data set, or one kind of feedback, per module."""
