"""Judges (rules, a gold reward model, a language model) and the win rates that they give. Imports no torch."""

from policy.judging.judges.duels import Duel, Judge, JudgedDuels, duels_between, with_history
from policy.judging.judges.gold import gold
from policy.judging.judges.llm import LLMJudge
from policy.judging.judges.rules import by_rule, by_user, contains, longer, named_rule, shorter
from policy.judging.judges.win_rates import WinMatrix, WinRate, matrix_table, rate_table, win_matrix, win_rate
from prm.io.endpoint import Endpoint

__all__ = [
    "Duel",
    "Endpoint",
    "Judge",
    "JudgedDuels",
    "LLMJudge",
    "WinMatrix",
    "WinRate",
    "by_rule",
    "by_user",
    "contains",
    "duels_between",
    "gold",
    "longer",
    "matrix_table",
    "named_rule",
    "rate_table",
    "shorter",
    "win_matrix",
    "win_rate",
    "with_history",
]
