"""The live service: ranks responses for whoever asks, takes feedback, and knows the user better at the next request."""
