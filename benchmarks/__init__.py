"""Speed, each figure a ratio of two things measured in turn in one process (`make bench`)."""
