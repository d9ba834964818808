"""Attention that processes a shared prefix of several texts once."""
