"""What N buys."""
