"""Response files, and win rates between them."""
