"""The `prm` command."""

from prm.cli.arguments import main

__all__ = ["main"]
