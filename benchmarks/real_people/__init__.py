"""User models side by side on logs of real people: `python -m benchmarks.real_people DATA` writes docs/benchmark.md."""
