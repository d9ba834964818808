"""A prefix that several texts share is read once."""
