"""`BestOfN`: sample n responses with any generator, and return the one that the user likes best."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prm.data.arguments import Prompts, Texts, Users, require_columns, require_prompt, require_user_text
from prm.data.comparison import PromptLike, parse_prompt
from prm.errors import PrmError
from rerank.ranking.open_generator import GeneratorLike, as_generator
from rerank.ranking.rank_candidates import Ranker, distinct_responses
from rerank.ranking.reranker import RankedResponse, Reranker
from rerank.ranking.strategy_flag import Strategy
from rerank.sampling.config import Sampling
from rerank.sampling.generator import Request, Response, require_responses


class Candidate(RankedResponse):
    """A ranked response with whether it ended (`None`: not known), and how often it was sampled."""

    ended: bool | None
    times: int


@dataclass(frozen=True)
class BestResponse:
    """The best of n responses.

    Args:
        text: the response.
        score: the value that it is ranked by: its reward in logits, unless the reranker has another strategy.
        ended: false if it was cut at the maximum length, `None` if the generator does not say.
        candidates: all different responses, best first.
    """

    text: str
    score: float
    ended: bool | None
    candidates: list[Candidate]


class BestOfN:
    """Samples n responses to a prompt, and ranks them for a user.

    Args:
        reranker: ranks the responses.
        generator: samples them. An OpenAI-compatible endpoint (`rerank.Endpoint`, or its URL: vLLM, SGLang, llama.cpp),
            a `rerank.Sampler`, a policy's run folder, a language model's name, folder or hub id, a transformers model
            with its tokenizer, or a function `(prompt, n, user) -> list[str]`.
        n: number of responses.
        sampling: sampling settings, for all generators but a function.

    Raises `PrmError` for a generator that cannot be loaded, and for settings that it does not have.
    """

    def __init__(self, reranker: Reranker, generator: GeneratorLike, n: int = 16, sampling: Sampling | None = None):
        if n < 1:
            raise PrmError(f"'n' must be at least 1, got {n}")
        settings = sampling or Sampling()
        self.reranker, self.n = reranker, n
        self.generator = as_generator(generator, reranker.scorer, settings)
        self._ranker = Ranker(reranker.scorer, Strategy.parse(reranker.strategy), settings.seed)

    def __repr__(self) -> str:
        return f"BestOfN({self.reranker!r}, generator={type(self.generator).__name__}, n={self.n})"

    def generate(self, prompt: PromptLike, user: str | None = None, user_text: str = "") -> BestResponse:
        """The best response to a prompt for a user, with its score and the other candidates.

        Equal responses become one, empty ones are left out. An unknown user, or `None`, gets the generic user's.

        Raises `PrmError` if all responses are empty, the prompt does not fit or the generator fails; for an endpoint
        the message names its URL and what it answered.
        """
        request = Request(require_prompt(prompt, "generate_batch"), user, require_user_text("user_text", user_text))
        return next(self._generate([request]))

    def generate_batch(self, prompts: Prompts, users: Users, user_texts: Texts | None = None) -> list[BestResponse]:
        """The best response to each prompt for its user; an endpoint gets several requests at a time.

        Raises as `generate` does.
        """
        columns = require_columns(prompts=prompts, users=users, user_texts=user_texts)
        rows = enumerate(zip(*columns, strict=True))
        return list(
            self._generate([Request(parse_prompt(p, f"prompts[{i}]"), user, text) for i, (p, user, text) in rows])
        )

    def _generate(self, requests: Sequence[Request]) -> Iterator[BestResponse]:
        for request, drawn in zip(requests, self.generator.sample(requests, self.n), strict=True):
            yield self._best(request, require_responses(drawn))

    def _best(self, request: Request, responses: Sequence[Response]) -> BestResponse:
        texts, times, ended = distinct_responses(responses, self.reranker.scorer.reader)
        ranking = self._ranker.rank(request.prompt, texts, request.user, request.user_text, times)
        candidates = [
            Candidate(corpus_id=i, score=float(ranking.scores[i]), text=text, ended=ended[i], times=times[i])
            for i, text, _ in ranking.candidates
        ]
        best, _, _ = ranking.candidates[0]
        return BestResponse(texts[best], candidates[0]["score"], ended[best], candidates)
