"""Who has which row, and what embedding a row becomes, worked by hand."""

import json
from collections.abc import Callable
from dataclasses import replace
from math import log

import pytest
import torch
from torch import Tensor

from prm.data.comparison import Comparison, Message
from prm.errors import PrmError
from prm.users.build import init_from_token_embeddings, init_near_zero
from prm.users.index import UserIndex
from prm.users.kinds import Cluster, Individual, Separate, Uniform
from prm.users.trained_on import TrainedOn
from prm.users.user_model import UserModel


def judged(*users: str) -> list[Comparison]:
    return [Comparison(user, "q", "a", "b") for user in users]


def test_rows_follow_first_appearance_and_unknown_users_get_row_zero() -> None:
    index = UserIndex.from_comparisons(judged("zoe", "ann", "zoe", "bob"))
    assert [index.row(user) for user in ("zoe", "ann", "bob", "nobody", None)] == [1, 2, 3, 0, 0]
    assert index.ids == ["zoe", "ann", "bob"]
    assert index.n_rows == 4
    assert [user in index for user in ("ann", "nobody", None)] == [True, False, False]


def test_an_index_without_anyone_has_the_unknown_users_row() -> None:
    assert (UserIndex().n_rows, UserIndex().ids, UserIndex().row("ann")) == (1, [], 0)


def test_grow_appends_new_ids_once_and_moves_nobody() -> None:
    index = UserIndex(["zoe", "ann"])
    assert index.grow(["ann", "bob", "cat", "bob"]) == [3, 4]
    assert [index.row(user) for user in ("zoe", "ann", "bob", "cat")] == [1, 2, 3, 4]
    assert index.n_rows == 5
    assert index.grow(["zoe"]) == []


def test_forget_leaves_an_empty_row_and_everyone_else_in_place() -> None:
    index = UserIndex(["zoe", "ann", "bob"])
    assert index.forget("ann") == 2
    assert [index.row(user) for user in ("zoe", "ann", "bob")] == [1, 0, 3]
    assert (index.ids, index.n_rows, "ann" in index) == (["zoe", "bob"], 4, False)
    with pytest.raises(PrmError, match="'ann'"):
        index.forget("ann")


def test_someone_forgotten_who_returns_gets_a_fresh_row() -> None:
    index = UserIndex(["zoe", "ann"])
    index.forget("zoe")
    assert index.grow(["zoe"]) == [3]
    assert index.to_json() == [None, "ann", "zoe"]


def test_json_round_trip_keeps_rows_and_holes() -> None:
    index = UserIndex(["zoe", "ann", "bob", "cat"])
    index.forget("ann")
    index.forget("cat")
    again = UserIndex(json.loads(json.dumps(index.to_json())))
    assert [again.row(user) for user in ("zoe", "ann", "bob", "cat")] == [1, 0, 3, 0]
    assert again.n_rows == 5
    assert again.grow(["dan"]) == [5]


def test_comparisons_are_counted_by_person_ties_aside_and_forgotten_with_them() -> None:
    tie = Comparison("tim", "q", "a", "b", p_chosen=0.5)
    index = UserIndex.from_comparisons([*judged("zoe", "ann", "zoe", "bob"), tie])
    assert [index.num_comparisons(user) for user in ("zoe", "ann", "bob", "tim", "nobody", None)] == [
        2,
        1,
        1,
        0,
        None,
        None,
    ]
    index.learn(judged("ann", "cat", "cat", "ann"))
    index.forget("zoe")
    stored = json.loads(json.dumps([index.to_json(), index.num_comparisons_to_json()]))
    assert stored == [[None, "ann", "bob", "tim", "cat"], [None, 3, 1, 0, 2]]
    again = UserIndex(*stored)
    assert again.num_comparisons_to_json() == stored[1]
    again.learn(judged("zoe"))  # who returns starts anew
    assert again.num_comparisons("zoe") == 1


def test_people_of_a_run_that_counted_nobody_stay_uncounted() -> None:
    """A number that leaves out what the earlier run learnt from would be wrong."""
    index = UserIndex(["zoe", None, "ann"])
    index.learn(judged("ann", "bob"))
    assert index.num_comparisons_to_json() == [None, None, None, 1]


def test_comparisons_that_were_trained_on_are_found_again_by_user_and_texts() -> None:
    """Swapped, with another label and as messages they are the same; of another user, only the texts are."""
    index = UserIndex.from_comparisons([Comparison("ann", "q", "a", "b"), Comparison("bob", "p", "a", "b")])
    index.record([Comparison("cat", "q", "ab", "c")])  # a validation part
    assert index.ids == ["ann", "bob"]
    same = [
        Comparison("ann", "q", "b", "a"),
        Comparison("ann", "q", "a", "b", p_chosen=0.5, weight=2.0, user_text="she"),
        Comparison("ann", (Message("user", "q"),), "a", "b"),
        Comparison("cat", "q", "c", "ab"),
    ]
    by_others = [Comparison("bob", "q", "a", "b"), Comparison("dan", "p", "b", "a")]
    other = [Comparison("ann", "p q", "a", "b"), Comparison("ann", "q", "a", "c"), Comparison("cat", "q", "a", "bc")]
    assert index.trained_on is not None
    for found in (index.trained_on, TrainedOn(index.trained_on.to_arrays())):
        assert found.overlap([*same, *by_others, *other]) == {"own": 4, "others": 2}
        assert found.overlap([]) == {"own": 0, "others": 0}
        assert (
            found.in_users([*same, *by_others, *other]).tolist() == [True] * 3 + [False] * 6
        )  # no part for validation
        found.add([Comparison("dan", "q", "y", "x"), same[0]])
        assert len(found.to_arrays()["digests"]) == 4
        found.forget("ann")
        found.forget("dan")
        assert found.overlap([*same, *by_others, Comparison("dan", "q", "x", "y")]) == {"own": 1, "others": 1}
        assert len(found.to_arrays()["users"]) == 2
        assert not found.in_users(same).any()


def test_what_chose_settings_was_not_learnt_by_its_user() -> None:
    first, second, third = (Comparison("ann", "q", "a", b) for b in "bcd")
    index = UserIndex.from_comparisons([first])
    index.record([first, second])
    assert index.are_learnt([first, second, third, replace(first, user_id="bob")]) == [True, False, False, False]
    index.learn([second])
    assert index.trained_on is not None
    index.trained_on = TrainedOn(index.trained_on.to_arrays())
    assert index.are_learnt([first, second, third]) == [True, True, False]
    index.learn([third], anew=["ann"])
    assert index.are_learnt([first, second, third]) == [False, False, True]


def stored(index: UserIndex) -> UserIndex:
    return UserIndex.from_arrays(index.to_arrays())


def test_a_stored_index_is_the_same_index() -> None:
    """Ids of any length and script, holes and counts; what is changed afterwards, and stored again, too."""
    index = UserIndex.from_comparisons(judged("zoe", "ann", "zoe", "Ænnå", "名", "x" * 300))
    index.forget("ann")
    again = stored(index)
    assert again.to_json() == ["zoe", None, "Ænnå", "名", "x" * 300]
    assert [again.row(user) for user in (*index.ids, "ann", "zo", "", "\ud800", None)] == [1, 3, 4, 5, 0, 0, 0, 0, 0]
    assert again.num_comparisons_to_json() == [2, None, 1, 1, 1]
    assert (len(again), again.n_rows, "名" in again, "ann" in again) == (4, 6, True, False)
    again.learn(judged("名", "bob", "ann"), anew=["zoe"])
    assert (again.forget("Ænnå"), again.forget("bob")) == (3, 6)
    assert again.grow(["Ænnå", "zoe"]) == [8]
    for same in (again, stored(again), stored(stored(again))):
        assert same.to_json() == ["zoe", None, None, "名", "x" * 300, None, "ann", "Ænnå"]
        assert same.num_comparisons_to_json() == [0, None, None, 2, 1, None, 1, 0]
        assert (len(same), same.row("Ænnå"), same.row("bob")) == (5, 8, 0)
    with pytest.raises(PrmError, match="'bob'"):
        again.forget("bob")


def test_people_whom_nobody_counted_stay_so_when_stored() -> None:
    index = stored(UserIndex(["zoe", None, "ann"]))
    index.learn(judged("ann", "bob"))
    assert stored(index).num_comparisons_to_json() == [None, None, None, 1]


def test_two_ids_with_one_hash_are_distinguished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prm.users.id_table.key_of", len)
    index = stored(UserIndex(["bob", "ann", "zoe", "li"]))
    assert [index.row(user) for user in ("bob", "ann", "zoe", "li", "tim", "anna")] == [1, 2, 3, 4, 0, 0]


def test_an_id_given_twice_is_refused_but_two_holes_are_not() -> None:
    with pytest.raises(PrmError, match="twice"):
        UserIndex(["ann", None, "ann"])
    assert UserIndex([None, "ann", None]).row("ann") == 2


def fill(parameter: Tensor, values: list[object]) -> None:
    with torch.no_grad():
        parameter.copy_(torch.tensor(values).view_as(parameter))


def uniform() -> Uniform:
    model = Uniform(3, tokens=1, dim=2)
    fill(model.embedding, [3.0, 4.0])
    return model


def individual() -> Individual:
    model = Individual(3, tokens=1, dim=2)
    fill(model.generic, [1.0, 2.0])
    fill(model.offsets, [[0.0, 0.0], [0.5, -1.0], [2.0, 4.0]])
    return model


def separate() -> Separate:
    model = Separate(3, tokens=1, dim=2)
    fill(model.embeddings, [[1.0, 1.0], [2.0, 0.0], [4.0, 6.0]])
    return model


def free() -> Cluster:
    model = Cluster(3, tokens=1, dim=2, clusters=2, softmax=False)
    fill(model.centres, [[1.0, 0.0], [1.0, 2.0]])
    fill(model.weights, [[0.5, 0.5], [2.0, -1.0], [0.0, 3.0]])
    return model


def softmax() -> Cluster:
    model = Cluster(3, tokens=1, dim=2, clusters=2, softmax=True)
    fill(model.centres, [[1.0, 0.0], [1.0, 2.0]])
    fill(model.weights, [[0.0, 0.0], [log(3.0), 0.0], [1.0, 1.0 + log(3.0)]])
    return model


Make = Callable[[], UserModel]
MODELS: tuple[Make, ...] = (uniform, individual, separate, free, softmax)
# rows 0, 1, 2 of each; free row 1: 2 (1, 0) - 1 (1, 2); softmax row 1: 3/4 (1, 0) + 1/4 (1, 2)
EMBEDDINGS: dict[Make, list[list[float]]] = {
    uniform: [[3.0, 4.0], [3.0, 4.0], [3.0, 4.0]],
    individual: [[1.0, 2.0], [1.5, 1.0], [3.0, 6.0]],
    separate: [[1.0, 1.0], [2.0, 0.0], [4.0, 6.0]],
    free: [[1.0, 1.0], [1.0, -2.0], [3.0, 6.0]],
    softmax: [[1.0, 1.0], [1.0, 0.5], [1.0, 1.5]],
}
OWN: dict[Make, list[list[float]]] = {  # each row's own numbers
    uniform: [[], [], []],
    individual: [[0.0, 0.0], [0.5, -1.0], [2.0, 4.0]],
    separate: EMBEDDINGS[separate],
    free: [[0.5, 0.5], [2.0, -1.0], [0.0, 3.0]],
    softmax: [[0.0, 0.0], [log(3.0), 0.0], [1.0, 1.0 + log(3.0)]],
}
# of clusters: |e_0|^2, and |e_i - e_0|^2 of (0, -3) and (2, 5), and of (0, -1/2) and (0, 1/2)
SHARED_SQUARES: dict[Make, float] = {uniform: 25.0, individual: 5.0, separate: 0.0, free: 2.0, softmax: 2.0}
ROW_SQUARES: dict[Make, list[float]] = {free: [0.0, 9.0, 29.0], softmax: [0.0, 0.25, 0.25]}


@pytest.mark.parametrize("make", MODELS)
def test_embeddings_of_rows_worked_by_hand(make: Make) -> None:
    rows = [2, 0, 1, 1]
    got = make()(torch.tensor(rows))
    torch.testing.assert_close(got, torch.tensor([[EMBEDDINGS[make][row]] for row in rows]))


def test_a_uniform_model_without_tokens_is_empty() -> None:
    model = Uniform(5, tokens=0, dim=2)
    assert model(torch.tensor([0, 4])).shape == (2, 0, 2)


def test_several_tokens_keep_their_slots() -> None:
    model = Cluster(2, tokens=2, dim=1, clusters=2, softmax=False)
    fill(model.centres, [[1.0, 10.0], [2.0, 20.0]])
    fill(model.weights, [[0.0, 0.0], [1.0, 3.0]])
    assert model(torch.tensor([1])).tolist() == [[[7.0], [70.0]]]


def test_the_unknown_user_is_e_0_to_the_bit_and_its_offset_gets_no_gradient() -> None:
    model = Individual(2, tokens=1, dim=3)
    fill(model.generic, [0.1, 1e-8, -3.3])
    fill(model.offsets, [[0.2, 1e8, 7.7], [1.0, 1.0, 1.0]])
    assert torch.equal(model(torch.tensor([0]))[0], model.generic)
    model(torch.tensor([0, 1])).sum().backward()
    assert model.offsets.grad is not None
    assert model.offsets.grad[:, 0].tolist() == [[0.0] * 3, [1.0] * 3]


@pytest.mark.parametrize("make", MODELS)
def test_every_parameter_is_either_shared_or_per_row(make: Make) -> None:
    model = make()
    shared, own = {id(p) for p in model.shared()}, {id(p) for p in model.per_row()}
    assert shared | own == {id(p) for p in model.parameters()}
    assert not shared & own
    assert all(len(table) == 3 for table in model.per_row())


@pytest.mark.parametrize("make", MODELS)
def test_penalties_are_sums_of_squares_worked_by_hand(make: Make) -> None:
    squares = ROW_SQUARES.get(make) or [float(sum(x * x for x in own)) for own in OWN[make]]
    got = make().row_penalty(torch.tensor([2, 1, 1, 0]))
    torch.testing.assert_close(got, torch.tensor([squares[2], squares[1], squares[1], squares[0]]))
    assert make().shared_penalty().item() == pytest.approx(SHARED_SQUARES[make])


@pytest.mark.parametrize("make", MODELS)
def test_grow_keeps_old_rows_to_the_bit_and_new_rows_are_the_unknown_user(make: Make) -> None:
    model = make()
    before = model(torch.arange(3)).detach().clone()
    model.grow(5)
    after = model(torch.arange(5))
    assert torch.equal(after[:3], before)
    assert torch.equal(after[3:], before[:1].expand(2, -1, -1))
    assert model.n_rows == 5
    assert all(len(table) == 5 and table.requires_grad for table in model.per_row())
    with torch.no_grad():
        for table in model.per_row():
            table[4] += 1.0  # rows of newcomers are their own
    assert torch.equal(model(torch.arange(4)), after[:4])


@pytest.mark.parametrize("make", MODELS)
def test_set_row_takes_the_mean_and_forget_row_the_unknown_users_numbers(make: Make) -> None:
    rows, model = OWN[make], make()
    model.set_row(0, torch.tensor([1, 2]))
    for table in model.per_row():
        mean = torch.tensor([(a + b) / 2 for a, b in zip(rows[1], rows[2], strict=True)])
        torch.testing.assert_close(table.flatten(1), torch.stack([mean, *map(torch.tensor, rows[1:])]))
    model = make()
    model.forget_row(1)
    for table in model.per_row():
        torch.testing.assert_close(table.flatten(1), torch.tensor([rows[0], rows[0], rows[2]]))


@pytest.fixture
def words() -> Tensor:
    return torch.randn(50, 4, generator=torch.Generator().manual_seed(3))


def rows_of(words: Tensor, vectors: Tensor) -> list[int]:
    """Which word each vector is, to the bit."""
    return [next(i for i, word in enumerate(words) if torch.equal(word, v)) for v in vectors.detach().view(-1, 4)]


def test_starts_are_different_words_and_offsets_stay_zero(words: Tensor) -> None:
    model = Individual(3, tokens=2, dim=4)
    init_from_token_embeddings(model, words, seed=0)
    assert len(set(rows_of(words, model.generic))) == 2
    assert not model.offsets.any()
    apart = Separate(5, tokens=2, dim=4)
    init_from_token_embeddings(apart, words, seed=0)
    assert len(set(rows_of(words, apart.embeddings))) == 10
    cluster = Cluster(300, tokens=1, dim=4, clusters=3, softmax=False)
    init_from_token_embeddings(cluster, words, seed=0)
    assert len(set(rows_of(words, cluster.centres))) == 3
    torch.testing.assert_close(cluster.weights.mean(0), torch.full((3,), 1 / 3), atol=0.05, rtol=0)
    assert len({tuple(row) for row in cluster.weights.tolist()}) == 300  # nobody starts as someone else


def test_more_embeddings_than_words_use_each_word_about_equally_often(words: Tensor) -> None:
    model = Separate(6, tokens=1, dim=4)
    init_from_token_embeddings(model, words[:3], seed=0)
    assert sorted(rows_of(words, model.embeddings)) == [0, 0, 1, 1, 2, 2]


def test_a_start_depends_on_its_seed_alone(words: Tensor) -> None:
    def started(seed: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        model = Cluster(4, tokens=1, dim=4, clusters=2, softmax=True)
        init_from_token_embeddings(model, words, seed)
        return torch.cat([model.centres.flatten(), model.weights.flatten()]).detach()

    assert torch.equal(started(1, 0), started(1, 7))
    assert not torch.equal(started(1, 0), started(2, 0))


def test_heads_of_clusters_start_by_their_seed_alone() -> None:
    def started(seed: int) -> Tensor:
        model = Cluster(4, tokens=1, dim=4, clusters=2, softmax=False)
        init_near_zero(model, seed)
        return torch.cat([model.centres.flatten(), model.weights.flatten()]).detach()

    assert torch.equal(started(1), started(1))
    assert not torch.equal(started(1), started(2))


def test_half_precision_words_start_a_float32_model(words: Tensor) -> None:
    model = Individual(2, tokens=1, dim=4)
    init_from_token_embeddings(model, words.bfloat16(), seed=0)
    assert model.generic.dtype == torch.float32
    assert rows_of(words.bfloat16().float(), model.generic)


def test_near_zero_only_cluster_centres_are_distinguished() -> None:
    cluster = Cluster(3, tokens=1, dim=4, clusters=3, softmax=True)
    init_near_zero(cluster, seed=0)
    assert torch.pdist(cluster.centres.detach().flatten(1)).min() > 0.01
    assert cluster.centres.abs().max() < 0.5
    for make in (Uniform, Individual, Separate):
        model = make(3, 1, 4)
        init_near_zero(model, seed=0)
        assert not any(p.any() for p in model.parameters())


def test_an_id_that_is_a_number_is_refused_and_not_an_unknown_user() -> None:
    with pytest.raises(PrmError, match="'7'"):
        UserIndex(["7"]).row(7)  # type: ignore[arg-type]
