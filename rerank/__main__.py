"""`python -m rerank` is the `rerank` command."""

from rerank.cli import main

if __name__ == "__main__":
    main()
