"""PPO against a personalised reward."""
