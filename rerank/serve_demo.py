"""`make serve`: the demo's users as a live service, with a page that learns the taste of whoever opens it.

Trains the demo's run with posteriors if it is not there: they say what is not known of a person, and what to ask.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from prm.cli.output import errors_in_one_line, log_to_stderr
from prm.data.sources.public.everyday import load_questions
from prm.io.yaml_settings import read_train_config
from rerank.cli import main as rerank
from rerank.demo import divide, trained, write_logs


def main(argv: Sequence[str] | None = None) -> None:
    """Train the run beside the config's `output_dir`, and serve it until stopped."""
    parser = argparse.ArgumentParser(prog="rerank.serve_demo", description=__doc__)
    parser.add_argument("--config", default="configs/prm/demo.yaml", help="training run of the demo")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    args = parser.parse_args(argv)
    log_to_stderr()
    with errors_in_one_line():
        run = trained_with_posteriors(args.config)
    store = f"sqlite:///{run.parent / 'store.db'}"
    rerank(["serve", str(run), "--store", store, "--port", str(args.port)])


def trained_with_posteriors(path: str) -> Path:
    """Return the run of the demo's config with `users.kind bayes`, trained on the demo's log."""
    config = read_train_config(path).of_kind("bayes")
    folder = Path(config.output_dir).parent
    config.output_dir = str(folder / "bayes")
    write_logs(folder, Path(config.data.path), *divide(load_questions()))
    return trained(config)


if __name__ == "__main__":
    main()
