"""`python -m policy` is the `policy` command."""

from policy.cli import main

if __name__ == "__main__":
    main()
