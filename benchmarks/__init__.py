"""Speed: each figure is a ratio of two costs that are measured in turn in one process (`make bench`)."""
