"""Language models that know whom they answer, their rewards, and who wins."""
