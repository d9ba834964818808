"""What people say of themselves in empirical-Bayes runs: it moves their prior, wherever they are scored or learnt."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prm.config import BackboneConfig, DataConfig, SearchConfig, TrainConfig, UserConfig
from prm.data.comparison import Comparison
from prm.errors import CheckpointError, DataError, PrmError
from prm.evaluation.cold_start import cold_start_run
from prm.evaluation.evaluate import evaluate
from prm.io.tables import write_jsonl
from prm.models.reward_model import RewardModel
from prm.scoring.forget_user import forget_user
from prm.scoring.scorer import Scorer
from prm.training.run import train
from prm.users.bayes_model import Bayes
from tests.conftest import count_tokens, resign
from tests.planted import users_with_texts

LIKES, OTHER = "fox king over lazy", "fox seven over lazy"


def train_on(log: list[Comparison], tiny: str, folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    write_jsonl(folder / "log.jsonl", log)
    config = TrainConfig(
        output_dir=str(folder / "run"),
        data=DataConfig(path=str(folder / "log.jsonl")),
        backbone=BackboneConfig(tiny, dtype="float32", max_length=256),
        users=UserConfig("bayes", rank=12),
        search=SearchConfig(folds=2, l2=[10.0], user_l2=[1.0], layers=[1], poolings=["mean"]),
    )
    return train(replace(config, **changes))


@pytest.fixture(scope="module")
def folder(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty-eight people, each with words of their own that give their taste away."""
    folder = tmp_path_factory.mktemp("with_texts")
    train_on(users_with_texts(100, 0, 48), backbone_of("llama"), folder)
    return folder


@pytest.fixture
def scorer(folder: Path) -> Scorer:
    return Scorer.from_pretrained(folder / "run")


def by(user: str, log: list[Comparison]) -> list[Comparison]:
    return [replace(c, user_id=user) for c in log]


def silent(log: list[Comparison]) -> list[Comparison]:
    return [replace(c, user_text="") for c in log]


def people_of(scorer: Scorer) -> Bayes:
    assert isinstance(scorer.model, RewardModel)
    return scorer.model.posterior()


def test_unknown_users_with_different_texts_get_different_rewards(folder: Path, scorer: Scorer) -> None:
    """Other people with other words, on other prompts, before their first judgement."""
    uniform = Scorer.from_pretrained(folder / "run/uniform")
    for seed in (7, 8):
        strangers = users_with_texts(30, seed, 40, of="s")
        with_text, without_text = evaluate(scorer, strangers, uniform), evaluate(scorer, silent(strangers), uniform)
        assert with_text.row("personal").accuracy.value > without_text.row("personal").accuracy.value + 0.1
        assert with_text.gain is not None
        assert with_text.gain_nll is not None
        assert with_text.gain.value > 0.1
        assert with_text.gain_nll.value > 0.02
        assert with_text.row("generic user").accuracy == with_text.row("personal").accuracy  # a stranger is nobody else


def test_words_that_tell_nothing_stay_unread(tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = users_with_texts(40, 0, 48, tells=False)
    with caplog.at_level(logging.INFO):
        run = train_on(log, tiny, tmp_path / "with_texts")
    assert "left unread" in caplog.text
    plain = train_on(silent(log), tiny, tmp_path / "plain")
    assert (run / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    assert json.loads((run / "config.json").read_text())["user_text"] == "unread"
    c, scorer = log[0], Scorer.from_pretrained(run)
    texts = [c.chosen, c.rejected]
    for user in (None, c.user_id):
        assert torch.equal(scorer.score(c.prompt, texts, user, LIKES), scorer.score(c.prompt, texts, user))


def test_a_few_texts_are_too_few(tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = train_on(users_with_texts(30, 0, 19), tiny, tmp_path)
    assert "19 texts" in caplog.text
    assert people_of(Scorer.from_pretrained(run)).text_prior is None


def test_who_says_nothing_is_as_without_anybodys_text(folder: Path, tiny: str, tmp_path: Path) -> None:
    """To the bit: what some say is nobody else's business. Nor is it read with the prompt, of those who say it."""
    log = users_with_texts(100, 0, 48)
    mute = {f"p{i}" for i in range(40, 48)}
    some = train_on([replace(c, user_text="") if c.user_id in mute else c for c in log], tiny, tmp_path / "some")
    none = train_on(silent(log), tiny, tmp_path / "none")
    with_texts, without = Scorer.from_pretrained(some), Scorer.from_pretrained(none)
    assert people_of(with_texts).text_prior is not None
    c = users_with_texts(1, 5, 2)[0]
    texts = [c.chosen, c.rejected]
    for user in (*mute, None):
        assert torch.equal(with_texts.score(c.prompt, texts, user), without.score(c.prompt, texts, user))
    assert not torch.equal(with_texts.score(c.prompt, texts, "p0"), without.score(c.prompt, texts, "p0"))
    uniform = [Scorer.from_pretrained(run / "uniform") for run in (some, none)]
    assert torch.equal(uniform[0].score(c.prompt, texts, None, LIKES), uniform[1].score(c.prompt, texts))


def test_who_has_judged_keeps_what_is_known(scorer: Scorer) -> None:
    c = users_with_texts(4, 5, 2)[0]
    texts = [c.chosen, c.rejected]
    assert torch.equal(scorer.score(c.prompt, texts, "p0", OTHER), scorer.score(c.prompt, texts, "p0"))
    assert not torch.equal(scorer.score(c.prompt, texts, None, OTHER), scorer.score(c.prompt, texts))
    assert torch.equal(scorer.score(c.prompt, texts, "zoe", OTHER), scorer.score(c.prompt, texts, None, OTHER))


def test_further_words_of_who_has_judged_change_nothing(folder: Path, scorer: Scorer) -> None:
    own = [c for c in users_with_texts(40, 21, 2) if c.user_id == "p1"][:3]
    scorer.update_user("p1", own)
    other = Scorer.from_pretrained(folder / "run")
    other.update_user("p1", [replace(c, user_text=LIKES) for c in own])
    assert torch.equal(people_of(scorer).means, people_of(other).means)
    assert torch.equal(people_of(scorer).factors, people_of(other).factors)


def test_every_entry_point_gives_an_unknown_user_the_same_parameters(scorer: Scorer) -> None:
    """Rewards, deviations, gains, margins and questions are those of somebody whose row is the prior of the text."""
    c = users_with_texts(4, 5, 2)[0]
    texts, pair = [c.chosen, c.rejected, "an old potion"], (c.prompt, c.chosen, c.rejected)
    found = scorer.score(c.prompt, texts, None, LIKES, return_std=True)
    gains = scorer.gains(c.prompt, texts, "zoe", LIKES)
    with_text = scorer.prefer(*pair, None, LIKES), scorer.next_question(None, [pair], LIKES).information
    before = scorer.score(c.prompt, texts, return_std=True)

    scorer.fit_user("ann", [])
    row, people = scorer.users.index("ann") + 1, people_of(scorer)
    assert torch.equal(scorer.score(c.prompt, texts, "ann"), before[0])
    torch.testing.assert_close(scorer.score(c.prompt, texts, "ann", LIKES), found[0])  # known by name alone
    people.set_text_prior(torch.tensor([row]), scorer.reader.pooled_user_texts([LIKES]))
    expected = scorer.score(c.prompt, texts, "ann", return_std=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(scorer.score(c.prompt, texts, None, LIKES), expected[0])
    for ours, theirs in zip(gains, scorer.gains(c.prompt, texts, "ann"), strict=True):
        torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs))
    assert gains.pick == int(before[0].argmax())  # what everybody would be given
    assert with_text[0] == pytest.approx(scorer.prefer(*pair, "ann"), abs=1e-5)
    assert with_text[1] == pytest.approx(scorer.next_question("ann", [pair]).information, abs=1e-5)
    without_text = scorer.gains(c.prompt, texts)
    assert bool((gains.std <= without_text.std).all())  # more is known
    assert float(gains.std.max()) < float(without_text.std.max())


def test_scores_do_not_depend_on_who_else_is_asked_for(scorer: Scorer) -> None:
    log = users_with_texts(12, 5, 6)
    users = [[None, "p3", "zoe"][i % 3] for i in range(len(log))]
    texts = [["", LIKES, OTHER][i // 3 % 3] for i in range(len(log))]
    columns = [c.prompt for c in log], [c.chosen for c in log], users, texts
    together = scorer.score_batch(*columns)
    backwards = scorer.score_batch(columns[0][::-1], columns[1][::-1], users[::-1], texts[::-1]).flip(0)
    alone = [scorer.score_batch([p], [y], [u], [t]) for p, y, u, t in zip(*columns, strict=True)]
    torch.testing.assert_close(together, backwards, atol=1e-4, rtol=0)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)
    nobody = [i for i, user in enumerate(users) if user is None and not texts[i]]
    plain = scorer.score_batch(columns[0], columns[1], [None] * len(log))
    assert torch.equal(together[nobody], plain[nobody])


def test_score_users_is_score_batch_of_all_rows_to_the_bit(scorer: Scorer) -> None:
    """Texts set the prior of whoever has no comparisons, and no response is read again for them."""
    c = users_with_texts(4, 5, 2)[0]
    responses = [c.chosen, c.rejected, "an old potion"]
    users = ["p3", None, "zoe", None, "zoe", "p0", "p3"]
    texts = [LIKES, OTHER, LIKES, "", LIKES, "", OTHER]
    read = count_tokens(scorer.model.backbone)
    found = scorer.score_users(c.prompt, responses, users, texts)
    sequences = [scorer.reader.encode(c.prompt, y).ids for y in responses]
    sequences += [scorer.encoder.encode_user_text(text).ids for text in (OTHER, LIKES)]
    assert sum(read) <= sum(map(len, sequences))
    rows = [(user, text, y) for user, text in zip(users, texts, strict=True) for y in responses]
    for m in (7, 3, 1):  # products of matrices of other shapes round otherwise
        columns = [list(column) for column in zip(*rows[: 3 * m], strict=True)]
        expected = scorer.score_batch([c.prompt] * 3 * m, columns[2], columns[0], columns[1])
        assert torch.equal(scorer.score_users(c.prompt, responses, users[:m], texts[:m]), expected.view(m, 3))
    assert torch.equal(found[0], found[6])  # whoever has judged keeps what is known
    assert torch.equal(found[2], found[4])
    assert not torch.allclose(found[1], found[3], atol=1e-3)
    assert not torch.allclose(found[1], found[2], atol=1e-3)
    backwards = scorer.score_users(c.prompt, responses, users[::-1], texts[::-1]).flip(0)
    torch.testing.assert_close(backwards, found, atol=1e-4, rtol=0)


def test_training_fitting_and_going_on_agree(folder: Path, scorer: Scorer, tmp_path: Path) -> None:
    """The same judgements and words make the same person; the last words count."""
    own = [c for c in users_with_texts(100, 0, 48) if c.user_id == "p4"]
    trained = people_of(scorer).means[scorer.users.index("p4") + 1].clone()
    with_text = [replace(own[0], user_text="an old potion"), *own[1:]]
    scorer.fit_user("again", by("again", with_text))
    row = scorer.users.index("again") + 1
    torch.testing.assert_close(people_of(scorer).means[row], trained, atol=2e-3, rtol=0)
    scorer.fit_user("mute", by("mute", silent(own)))
    assert float((people_of(scorer).means[row + 1] - trained).norm()) > 0.05 * float(trained.norm())
    write_jsonl(tmp_path / "new.jsonl", by("again", with_text))
    data = DataConfig(path=str(tmp_path / "new.jsonl"))
    following = TrainConfig(str(tmp_path / "next"), start_from=str(folder / "run"), data=replace(data, test_fraction=0))
    after = Scorer.from_pretrained(train(following))
    assert people_of(after).text_prior is not None
    torch.testing.assert_close(people_of(after).means[-1], trained, atol=2e-3, rtol=0)
    assert torch.equal(people_of(after).means[:49], people_of(scorer).means[:49])


def test_who_is_known_by_name_alone_starts_from_their_words_too(scorer: Scorer) -> None:
    own = [c for c in users_with_texts(40, 21, 2, of="n") if c.user_id == "n0"][:1]
    scorer.fit_user("said", by("said", own))
    scorer.fit_user("mute", by("mute", silent(own)))
    scorer.fit_user("named", [])
    scorer.update_user("named", by("named", own))
    said, mute, named = people_of(scorer).means[-3:]
    torch.testing.assert_close(named, said, atol=0.02, rtol=0)
    assert float((mute - said).norm()) > 0.2 * float(said.norm())


def test_newcomers_start_from_what_they_say(folder: Path) -> None:
    """Nobody has judged, and then everybody twice, which is little to forget it by."""
    strangers = users_with_texts(40, 7, 40, of="s")
    with_text, without_text = (
        cold_start_run(folder / "run", log, [0, 2]).steps for log in (strangers, silent(strangers))
    )
    for with_words, without in zip(with_text, without_text, strict=True):
        assert with_words.rows[0].accuracy.value > without.rows[0].accuracy.value + 0.07


def test_a_forgotten_user_is_an_unknown_user_with_a_text(folder: Path, tmp_path: Path) -> None:
    """And what was read of them is gone."""
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    scorer = Scorer.from_pretrained(run, cache=True)
    c = users_with_texts(4, 5, 2)[0]
    texts = [c.chosen, c.rejected]
    stranger = scorer.score(c.prompt, texts, None, LIKES)
    stores = list((tmp_path / "cache").rglob("*.safetensors"))
    assert stores
    forget_user(run, "p4")
    scorer = Scorer.from_pretrained(run)
    assert not any(store.exists() for store in stores)
    assert torch.equal(scorer.score(c.prompt, texts, "p4"), scorer.score(c.prompt, texts))
    torch.testing.assert_close(scorer.score(c.prompt, texts, "p4", LIKES), stranger)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"user_text": "unread"}, r"model\.safetensors: .*text_prior\."),
        ({"user_text": "suffix"}, r"config\.json is damaged: 'user_text' must be one of"),
        ({"users": {"kind": "individual"}}, r"config\.json is damaged: user_text 'prior' with users.kind 'individual'"),
        ({"reward": {"features": ["1 mean", "2 mean"], "pooling": "last"}}, r"model\.safetensors: .* has shape \["),
    ],
)
def test_a_damaged_run_is_refused(folder: Path, tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    path = tmp_path / "run/config.json"
    config = json.loads(path.read_text())
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    config["backbone"]["layers"] = config["backbone"]["layers"] if "reward" not in change else 2
    path.write_text(json.dumps(config))
    resign(tmp_path / "run")
    with pytest.raises(CheckpointError, match=fault):
        Scorer.from_pretrained(tmp_path / "run")


def test_words_that_do_not_fit_name_their_row(tiny: str, tmp_path: Path, scorer: Scorer) -> None:
    log = users_with_texts(10, 0, 24)
    log[3] = replace(log[3], user_id="long", user_text="king " * 300)
    with pytest.raises(DataError, match=r"log\.jsonl, line 4: .*user_text.* 256 "):
        train_on(log, tiny, tmp_path)
    with pytest.raises(DataError, match="user_text"):
        scorer.score("what of the fox?", ["a king"], None, "king " * 300)
    with pytest.raises(DataError, match="user_text"):
        scorer.reader.check("what of the fox?", "a king", "king " * 300)


def test_dropping_words_makes_no_sense_here(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(PrmError, match=r"users\.text_dropout"):
        train_on(users_with_texts(10, 0, 4), tiny, tmp_path, users=UserConfig("bayes", text_dropout=0.5))
