"""Users: from an id to a row, and from a row to an embedding."""
