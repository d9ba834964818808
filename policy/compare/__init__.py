"""Compare policies: train them, sample responses to the same prompts, and judge by what none was trained on."""
