"""The flags of `policy prompts`, `policy sample` and `policy judge`; `draw`, `sample` and `commands` run them."""

from typing import get_args

from prm.checks import Count, Natural, NonNegative, Positive
from prm.cli.parsing import Parser, typed
from prm.config import Device, Dtype, FeedbackConfig
from rerank.sampling.config import Sampling

ANSWERS = "answers.jsonl"  # name of a response file in a folder

PROMPTS = (
    "Draw the prompts of the paper's Table 2 from PRISM: held-out turns of seen and of unseen users, into a file that "
    "'policy sample' reads. It holds what 'policy judge --protocol prism' needs, and the chosen responses."
)
SAMPLE = (
    "Sample one response to each prompt for its user, into a file that 'policy judge' reads. "
    "PROMPTS is JSON Lines of prompt, user_id and user_text; a run's test.jsonl is such a file."
)
JUDGE = (
    "Compare two response files (or folders that hold answers.jsonl) on the same prompts and users, "
    "by one judge: --rule, --rules, --gold or --endpoint."
)


def add_prompts(parser: Parser) -> None:
    """Add the flags of `policy prompts`."""
    log_help = "PRISM: folder or hub id; or a log of pairs with the same metadata, such as a run's test.jsonl"
    parser.add_argument("log", help=log_help)
    parser.add_settings(FeedbackConfig, "data", skip={"data.path"})
    parser.add_argument("--output", default="prompts.jsonl", help="JSON Lines file to write")
    parser.add_argument("--people", type=typed(Count), default=10, help="number of seen users, and of unseen ones")
    parser.add_argument("--samples", type=typed(Count), default=76, help="number of turns")
    parser.add_argument("--seed", type=typed(Natural), default=0, help="seed of the draw")


def add_sample(parser: Parser) -> None:
    """Add the flags of `policy sample`."""
    parser.add_argument("run", help="a policy's run folder, or a causal language model by name or folder")
    parser.add_argument("prompts", help="JSON Lines of prompt and, without --users, user_id")
    parser.add_argument(
        "--users", action="extend", nargs="+", default=[], help="sample every prompt for each of these users"
    )
    parser.add_argument("--output", help=f"JSON Lines file to write; default: RUN/{ANSWERS}")
    parser.add_settings(Sampling, "sampling")
    parser.add_argument("--batch", type=typed(Count), default=16, help="number of prompts that are sampled together")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="auto", help="dtype of the weights, as in 'rerank'")
    parser.add_argument("--device", type=typed(Device), help="cpu, cuda, ...; chosen automatically by default")


def add_judge(parser: Parser) -> None:
    """Add the flags of `policy judge`."""
    parser.add_argument("first", help="JSON Lines of prompt, user_id and response")
    parser.add_argument("second", help="the same for the other side")
    parser.add_argument("--rule", help="'longer', 'shorter' or 'contains:PHRASE', for all users")
    parser.add_argument("--rules", help='JSON file with a rule for each user: {"anna": "shorter"}')
    parser.add_argument("--gold", help="run folder of a reward model that was trained on other data")
    parser.add_argument("--endpoint", help="URL of an OpenAI-compatible endpoint, up to /v1")
    parser.add_argument("--model", help="the model's name at the endpoint")
    parser.add_argument("--key_variable", default="OPENAI_API_KEY", help="environment variable with the API key")
    timeout_help = "seconds until a request to the endpoint is given up; a local model may need more"
    parser.add_argument("--timeout", type=typed(Positive), default=60.0, help=timeout_help)
    parser.add_argument("--concurrency", type=typed(Count), default=8, help="number of requests in flight")
    parser.add_argument("--price_in", type=typed(NonNegative), help="price per million tokens of requests")
    parser.add_argument("--price_out", type=typed(NonNegative), help="price per million tokens of replies")
    protocol_help = "the paper's question: 'prism' (Table 2, one order), 'psoups' (Table 1, by preference prompts)"
    parser.add_argument("--protocol", choices=["prism", "psoups"], help=protocol_help)
    parser.add_argument("--seed", type=typed(Natural), default=0, help="seed of the order of responses in 'prism'")
    parser.add_argument("--log", help="log of comparisons that show the endpoint's model users' preferences")
    history_help = "maximum number of a user's earlier comparisons in a request"
    parser.add_argument("--max_history", type=typed(Natural), default=5, help=history_help)
    parser.add_argument("--cost", action="store_true", help="print the cost of asking the endpoint, and send nothing")
    parser.add_argument("--output", default="runs/judged", help="folder for the result, duels and replies")
    parser.add_argument(
        "--overwrite",
        type=typed(bool),
        nargs="?",
        const=True,
        default=False,
        metavar="true|false",
        help="replace the result in the folder; the endpoint's replies there are kept and used",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
