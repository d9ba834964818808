"""The service over HTTP: one module per group of endpoints."""
