"""N responses to a prompt."""
