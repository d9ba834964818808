"""PPO on a personal reward."""
