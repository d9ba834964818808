"""Rank the given responses of files of any size into a folder of Parquet shards."""

from argparse import Namespace
from collections.abc import Collection, Mapping
from functools import partial

import pyarrow as pa
import torch

from prm.data.comparison import require_text
from prm.errors import DataError, PrmError
from prm.scale.job import Result
from prm.scale.requests import Asked
from prm.scale.score_files import score_files
from rerank.ranking.rank_candidates import BY_REWARDS, REPLACED, answer_row, rank_rewards
from rerank.ranking.requests import request_of
from rerank.ranking.strategy_flag import Strategy
from rerank.sampling.generator import Request


def rank_files(args: Namespace, strategy: Strategy, seed: int) -> None:
    """Rank all rows of the files that `--input` names; see `score_files`.

    Raises `PrmError` for a strategy that needs more than rewards.
    """
    if strategy.name not in BY_REWARDS:
        raise PrmError(f"--engine ranks by {' or '.join(BY_REWARDS)}; leave it out for --strategy {args.strategy}")
    name = f"rerank --strategy {args.strategy}" + (f", seed {seed}" if strategy.name == "soft" else "")
    result = Result(name, _parse, partial(_finish, strategy, seed), partial(_columns, strategy), REPLACED)
    score_files(
        args.run,
        args.input,
        args.output,
        args.engine,
        args.backbone,
        args.device,
        args.workers,
        result,
        on_bad_row=args.on_bad_row,
    )


def _request(row: Mapping[str, object]) -> Request:
    # in tables each row has all columns, those that it does not use without a value
    return request_of({name: value for name, value in row.items() if value is not None})


def _parse(row: Mapping[str, object]) -> Asked:
    request = _request(row)
    if request.responses is None:
        raise DataError("'responses' is missing: with --engine none are sampled")
    texts = [require_text("response", response.text) for response in request.responses]
    return Asked(request.prompt, texts, request.user, request.user_text)


def _finish(
    strategy: Strategy, seed: int, row: Mapping[str, object], asked: Asked, rewards: list[float], known: bool
) -> Mapping[str, object]:
    responses = _request(row).responses or ()
    ranked = rank_rewards(responses, torch.tensor(rewards), strategy, seed)
    return answer_row(row, ranked, [response.ended for response in responses], strategy, known)


def _columns(strategy: Strategy, inputs: Collection[str]) -> pa.Schema:
    value = {strategy.score_name: pa.float64()} if strategy.score_name else {}
    entry = {"text": pa.string(), "reward": pa.float32(), **value, "ended": pa.bool_()}
    return pa.schema({"known_user": pa.bool_(), "ranking": pa.list_(pa.struct(entry))})
