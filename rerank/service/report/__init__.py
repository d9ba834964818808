"""`rerank report`: is personal ranking good? Measured on what a service's users were shown, and what they said."""
