"""Training by gradient steps, on transformers' and TRL's trainers."""
