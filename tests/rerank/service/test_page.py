"""The page in a browser: planted people click through ten pairs, and their picks for new questions move their way."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from transformers import AutoModelForCausalLM

from prm.config import BackboneConfig, DataConfig, SearchConfig, TrainConfig, UserConfig
from prm.data.sources.public.everyday import PEOPLE, Answer, SimulatedUser, load_questions, simulate_comparisons
from prm.io.tables import write_jsonl
from prm.training.run import train
from rerank.demo import divide
from rerank.service.engine import Engine
from rerank.service.http.app import build_app
from tests.browser import open_browser, widths_that_do_not_fit
from tests.conftest import build_config, save_random
from tests.rerank.service.conftest import MakeEngine
from tests.rerank.service.live import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

pytestmark = pytest.mark.browser

PLANTED = {p.name: p for p in PEOPLE if p.name in ("eva", "finn", "ada", "ben")}  # lists, prose, short, long
ANSWERS = {a.text: a for q in load_questions() for a in q.answers}
READY = ".answers[aria-busy=false] #first:enabled"
AXE = "axe-core@4.14.1"


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with posteriors on the demo's questions, by a tiny random model that tells lists from prose."""
    folder = tmp_path_factory.mktemp("teach")
    config = build_config("llama")
    config.max_position_embeddings = 1024
    backbone = save_random(folder, AutoModelForCausalLM, config)
    comparisons = simulate_comparisons(divide(load_questions())[0], tuple(PLANTED.values()), 7)
    write_jsonl(folder / "log.jsonl", [comparison for comparison, _ in comparisons])
    settings = TrainConfig(
        output_dir=str(folder / "run"),
        data=DataConfig(path=str(folder / "log.jsonl"), test_fraction=0.0),
        backbone=BackboneConfig(backbone, dtype="float32"),
        search=SearchConfig(folds=2, l2=[10.0], user_l2=[10.0], poolings=["mean"], layers=[1]),
        users=UserConfig("bayes"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRM_CACHE", str(folder / "cache"))
        return train(settings)


@pytest.fixture
def service(make_engine: MakeEngine, run: Path) -> Iterator[tuple[str, Engine]]:
    """(address of a live service, its engine)."""
    engine = make_engine(run=run)
    with serving(build_app(engine)) as url:
        yield f"{url}/", engine


@pytest.fixture
def open_page(browser: "Browser", service: tuple[str, Engine]) -> "Iterator[Callable[..., Page]]":
    """Function that opens the page; at the end its console must be empty, unless a test asked for errors."""
    opened: list[tuple[Page, list[str]]] = []

    def open_it(width: int = 1280, scheme: str = "light", fails: bool = False, **settings: object) -> "Page":
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # type: ignore[arg-type]
            reduced_motion="reduce",
            **settings,  # type: ignore[arg-type]
        )
        page, messages = context.new_page(), list[str]()
        page.on("console", lambda message: None if fails else messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(service[0])
        page.locator(READY).wait_for()
        opened.append((page, messages))
        return page

    yield open_it
    for page, messages in opened:
        page.context.close()
        assert messages == []


def texts_of(page: "Page") -> list[Answer]:
    """The two responses that are asked."""
    return [ANSWERS[page.locator(f"#{side} .text").text_content() or ""] for side in ("first", "second")]


def asked(page: "Page") -> str:
    return page.locator("#prompt").inner_text() + page.locator(".answers").inner_text()


def press(page: "Page", side: int, by_key: bool) -> None:
    """Answer, and wait for the next question."""
    before = asked(page)
    if by_key:
        page.keyboard.press("123"[side])
    else:
        page.locator(("#first", "#second", "#tie")[side]).click()
    page.locator(READY).wait_for()
    assert asked(page) != before


def share_of_lists(page: "Page", address: str, user: str) -> float:
    """Of the picks for all new questions."""
    picks = []
    for number in range(20):
        found = page.request.get(f"{address}v1/users/{user}/preview?number={number}").json()
        picks.append(ANSWERS[found["responses"][found["personal"]]].attributes["list"])
    return sum(picks) / len(picks)


@pytest.mark.parametrize(
    ("name", "width", "scheme", "by_key"), [("eva", 1280, "light", False), ("finn", 375, "dark", True)]
)
def test_ten_answers_move_the_picks_and_forgetting_takes_them_back(
    name: str, width: int, scheme: str, by_key: bool, open_page: "Callable[..., Page]", service: tuple[str, Engine]
) -> None:
    person: SimulatedUser = PLANTED[name]
    (address, engine), page = service, open_page(width, scheme)
    everybodys = share_of_lists(page, address, "nobody")
    wide = page.locator(".range").nth(2).bounding_box()
    for _ in range(10):
        first, second = texts_of(page)
        press(page, int(person.utility(second) > person.utility(first)), by_key)
    user = page.evaluate("localStorage.getItem('person')")
    moved = share_of_lists(page, address, user) - everybodys
    assert moved * (1 if name == "eva" else -1) >= 0.15
    toward = page.locator("#bars .toward").all_inner_texts()
    assert ("a list" if name == "eva" else "prose") in toward
    narrow = page.locator(".range").nth(2).bounding_box()
    assert wide is not None
    assert narrow is not None
    assert narrow["width"] < wide["width"]
    page.locator("#another").click()
    page.locator("#everybodys:not([hidden])").wait_for()
    assert page.locator("#mine .text").inner_text() != page.locator("#everybodys .text").inner_text()
    assert widths_that_do_not_fit(page) == []

    page.locator("#forget").click()
    page.get_by_role("button", name="Keep", exact=True).click()
    assert engine.store.counts()["comparisons"] == 10
    page.locator("#forget").click()
    page.locator("#yes").click()
    page.locator("#known:empty").wait_for(state="attached")
    page.locator(READY).wait_for()
    assert set(engine.store.counts().values()) == {0}
    assert page.evaluate("localStorage.getItem('person')") != user
    assert page.locator("#bars .toward").count() == 0


def test_a_reload_keeps_the_person_and_the_question(
    open_page: "Callable[..., Page]", service: tuple[str, Engine]
) -> None:
    page = open_page()
    press(page, 2, by_key=True)
    press(page, 0, by_key=True)
    before = asked(page)
    page.reload()
    page.locator(READY).wait_for()
    assert asked(page) == before
    assert "1 comparison" in page.locator("#known").inner_text()
    assert service[1].store.counts()["feedback"] == 2


def test_a_click_is_not_lost_and_counts_once_when_the_service_is_gone_or_busy(
    open_page: "Callable[..., Page]", service: tuple[str, Engine]
) -> None:
    page = open_page(fails=True)
    replies: list[str] = []

    def unsteady(route: "Route") -> None:
        """Gone; then the click arrives, but not the reply; then busy; then as it should be."""
        replies.append(route.request.post_data or "")
        if len(replies) == 1:
            route.abort()
        elif len(replies) == 2:
            route.fetch()
            route.abort()
        elif len(replies) == 3:
            busy = {"error": {"message": "many wait"}}
            route.fulfill(status=503, headers={"Retry-After": "0"}, json=busy)
        else:
            route.continue_()

    page.route("**/v1/feedback", unsteady)
    page.clock.install()
    page.locator("#first").click()
    page.locator("#first").dispatch_event("click")  # a double click is one answer
    page.keyboard.press("2")
    said = set[str]()
    for _ in range(200):  # each step runs what waits for a second
        page.clock.run_for(1000)
        page.wait_for_timeout(20)
        said.add(page.locator("#trouble").inner_text())
        if len(replies) >= 4 and page.locator(READY).count():
            break
    assert any("cannot be reached" in message for message in said)
    assert any("many wait" in message for message in said)
    assert page.locator("#trouble").inner_text() == ""
    assert len(replies) == 4
    assert len(set(replies)) == 1
    assert service[1].store.counts()["comparisons"] == 1


def test_a_refusal_is_said(open_page: "Callable[..., Page]") -> None:
    page = open_page(fails=True)
    page.route("**/v1/feedback", lambda route: route.fulfill(status=400, json={"error": {"message": "no <b>such"}}))
    page.locator("#second").click()
    page.locator("#trouble p", has_text="no <b>such").wait_for()
    page.locator(READY).wait_for()


def test_a_key_is_asked_for_and_kept_until_the_tab_is_closed(
    browser: "Browser", make_engine: MakeEngine, run: Path
) -> None:
    engine = make_engine(run=run)
    with serving(build_app(engine, needs_key=True)) as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{url}/")
        typed = page.get_by_label("API key")
        typed.wait_for()
        assert page.locator("main").is_hidden()
        typed.fill("prm-3")
        typed.press("Enter")
        page.get_by_text("does not know this key").wait_for()
        right = engine.store.add_key("acme")
        page.wait_for_timeout(600)  # for as long unknown keys are not looked up anew
        typed.fill(right)
        page.get_by_role("button", name="Use it").click()
        page.locator(READY).wait_for()
        press(page, 0, by_key=True)
        page.reload()
        page.locator(READY).wait_for()
        assert "1 comparison" in page.locator("#known").inner_text()
        assert right not in json.dumps(page.evaluate("({...localStorage})")) + page.url + page.content()
        user = page.evaluate("localStorage.getItem('person')")
        assert len(engine.store.comparisons_of(("acme", user))) == 1
        another = context.new_page()
        another.goto(f"{url}/")
        another.get_by_label("API key").wait_for()
        context.close()


def test_a_run_without_questions_says_what_to_do(
    browser: "Browser", make_engine: MakeEngine, run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    run = shutil.copytree(run_of("bayes"), tmp_path / "run")
    (run / "test.jsonl").unlink()
    with serving(build_app(make_engine(run=run))) as url:
        page = browser.new_page()
        page.goto(f"{url}/")
        page.locator("#prompt", has_text="--pool FILE").wait_for()
        assert page.locator(".answers button:visible").count() == 0
        page.close()


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core; skips where npm does not get it."""
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("axe")
    if npm is None:
        pytest.skip("npm is not installed")
    command = [npm, "pack", "--prefer-offline", "--silent", AXE]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not get {AXE} in a minute")
    if done.returncode:
        pytest.skip(f"npm cannot get {AXE}")
    shutil.unpack_archive(next(folder.glob("*.tgz")), folder, filter="data")
    return (folder / "package" / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
def test_axe_finds_nothing(width: int, scheme: str, axe: str, open_page: "Callable[..., Page]") -> None:
    """As it opens, after an answer, while it asks whether to forget, and with an error on it."""
    page = open_page(width, scheme, fails=True, bypass_csp=True)
    page.evaluate(axe)

    def violations() -> list[str]:
        found = page.evaluate("axe.run()")["violations"]
        return [f"{v['impact']} {v['id']}: {json.dumps([n['html'] for n in v['nodes']])}" for v in found]

    assert violations() == []
    press(page, 0, by_key=False)
    assert violations() == []
    page.locator("#forget").click()
    assert violations() == []
    assert page.evaluate("document.activeElement.textContent") == "Keep"
    page.keyboard.press("1")  # is not an answer now
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "forget"
    page.route("**/v1/feedback", lambda route: route.fulfill(status=400, json={"error": {"message": "no"}}))
    page.locator("#first").click()
    page.locator("#trouble p").wait_for()
    assert violations() == []
    assert "1 comparison." in page.locator("#known").inner_text()
