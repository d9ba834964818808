"""Results as titled tables and sentences, the same for the terminal and the page."""
