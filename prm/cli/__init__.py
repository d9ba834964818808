"""The `prm` command: `main` parses and runs it, like the entry point.

`prm.cli.arguments` defines `main` beside the arguments: a module `prm.cli.main` would hide the function of that name.
"""

from prm.cli.arguments import main

__all__ = ["main"]
