"""What a frozen backbone makes of a text: computed once, kept on disk."""
