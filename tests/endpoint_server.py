"""A real HTTP server on loopback that plays an OpenAI-compatible endpoint, faults included."""

import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

Body = dict[str, Any]


class Sent(NamedTuple):
    """What the server answers: `drop` closes the connection without a word, `cut` after that many bytes of the body;
    `delay` in seconds, `drip` between one byte of the body and the next."""

    status: int = 200
    raw: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    delay: float = 0.0
    drop: bool = False
    cut: int | None = None
    drip: float = 0.0


class FakeEndpoint(ThreadingHTTPServer):
    """Answers every POST with `play(body, number)`, numbers from 0, and a GET with the models.

    Records what was sent and the most at once.
    """

    daemon_threads = True

    def __init__(self, play: Callable[[Body, int], Sent], models: Sequence[str] = ("tiny",), port: int = 0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.play, self.models = play, models
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> "FakeEndpoint":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeEndpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            number = len(server.bodies)
            server.bodies.append(body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.times.append(time.perf_counter())
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        sent = server.play(body, number)
        time.sleep(sent.delay)
        with server.lock:  # before the reply: a client that has it may be back at once
            server.at_once -= 1
        self._answer(sent)

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        models = [{"id": name, "object": "model"} for name in self.server.models]
        self._answer(Sent(raw=json.dumps({"object": "list", "data": models})))

    def _answer(self, sent: Sent) -> None:
        if sent.drop:
            self.connection.close()
            return
        try:
            self.send_response(sent.status)
            for name, value in (("Content-Length", str(len(sent.raw.encode()))), *sent.headers):
                self.send_header(name, value)
            self.end_headers()
            raw = sent.raw.encode()[: sent.cut]
            for piece in [raw] if not sent.drip else [bytes([byte]) for byte in raw]:
                time.sleep(sent.drip)
                self.wfile.write(piece)
                self.wfile.flush()
        except OSError:  # the client gave up
            pass

    def log_message(self, format: str, *args: Any) -> None:
        pass


def completion(text: str | None, finish: str | None = "stop", **message: Any) -> Sent:
    return choices([(text, finish)], **message)


def choices(said: Sequence[tuple[str | None, str | None]], **message: Any) -> Sent:
    """A completion of several choices, each with its text and finish reason."""
    listed = [
        {"index": i, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
        for i, (text, finish) in enumerate(said)
    ]
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return Sent(raw=json.dumps({"id": "x", "object": "chat.completion", "choices": listed, "usage": usage}))


def answers(body: Body) -> tuple[str, str]:
    """The two answers that a request shows."""
    return inside(body, "answer_A"), inside(body, "answer_B")


def inside(body: Body, tag: str) -> str:
    """What a request shows between these tags."""
    (text,) = re.findall(rf"<{tag}>\n(.*?)\n</{tag}>", body["messages"][-1]["content"], re.DOTALL)
    return str(text)


def likes_shorter(body: Body, number: int = 0) -> Sent:
    """A model with a taste, whatever the order."""
    a, b = answers(body)
    verdict = "A" if len(a) < len(b) else "B" if len(b) < len(a) else "TIE"
    return completion(f"They like it brief.\nVerdict: {verdict}")


def outputs(body: Body) -> tuple[str, str]:
    """The two outputs that a question of the `prism` protocol shows."""
    return inside(body, "output_a"), inside(body, "output_b")


def likes_greater(body: Body, number: int = 0) -> Sent:
    """A model that prefers the output with the greater number in front; without numbers it says nothing of use."""
    a, b = outputs(body)
    if "?" in (a, b):
        return completion(f"Either is fine: {a} {b}")
    first, second = (int(text.split()[0]) for text in (a, b))
    verdict = "Output (a)" if first > second else "Output (b)" if second > first else "TIE"
    return completion(f"One says '{a}', the other '{b}'.\n\nResult for final example: {verdict}")
