"""Which of N responses to pick."""
