"""Linear heads on cached features: choose their settings, fit them."""
