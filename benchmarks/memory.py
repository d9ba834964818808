"""Peak memory of 16 answers read for many people behind the text, over that for one: `python -m benchmarks.memory`."""

import resource
import subprocess
import sys

from benchmarks.scoring import answers_of, soft_prompts, words
from prm.report import show


def peak(people: int, tokens: int) -> int:
    """Most resident kilobytes of a process of its own that scores for so many people, the model included."""
    command = [sys.executable, "-m", "benchmarks.memory", str(people), str(tokens)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    """Without arguments: the ratios. With people and tokens per person: score, and print this process's peak."""
    if len(sys.argv) > 1:
        people, tokens = map(int, sys.argv[1:])
        users = [f"u{i}" for i in range(people)]
        soft_prompts("smollm2-135m", "bfloat16", tokens, users).score_users(words(300), answers_of(16, 60), users)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    for tokens in (1, 10):
        one, many = peak(1, tokens), peak(100, tokens)
        show(f"soft prompt of {tokens}: 100 people {many // 1024} MB, one {one // 1024} MB, ratio {many / one:.2f}")


if __name__ == "__main__":
    main()
