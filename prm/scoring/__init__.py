"""Score with a trained model; add, update and forget its users."""
