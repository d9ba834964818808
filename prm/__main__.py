"""`python -m prm` is the `prm` command."""

from prm.cli import main

if __name__ == "__main__":
    main()
