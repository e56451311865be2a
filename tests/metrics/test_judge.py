"""The judge against a real HTTP server that speaks chat completions, well and badly, and against majorities by hand."""

from __future__ import annotations

import base64
import io
import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from likeness.metrics.judge import AskFailed, judge, parse_answer, strict_majority
from likeness.metrics.judge_url import ChatJudge, api_key

KEY = "sk-very-secret-0123456789"
PICTURE = Image.new("RGB", (8, 6), (10, 200, 30))


class Server(ThreadingHTTPServer):
    """Answers from `script`, one entry a request, the last for ever: (status, body or text of an answer, headers)."""

    daemon_threads = True

    def __init__(self) -> None:
        self.script: list[tuple[int, Any, dict[str, str]]] = [(200, "Yes.", {})]
        self.seen: list[dict[str, Any]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append({"path": self.path, "key": self.headers.get("Authorization"), "body": body})
        script = self.server.script
        status, says, headers = script.pop(0) if len(script) > 1 else script[0]
        if callable(says):
            says = says(self)
            if says is None:
                return
        if status == 200 and isinstance(says, str):
            usage = {"prompt_tokens": 1000, "completion_tokens": 2}
            says = json.dumps({"choices": [{"message": {"content": says}}], "usage": usage}).encode()
        raw = says if isinstance(says, bytes) else str(says).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        self.server.seen.append({"path": self.path, "key": self.headers.get("Authorization")})
        self.send_error(404)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture()
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def asked(server: Server, **options: Any) -> tuple[ChatJudge, list[float]]:
    """A judge that notes how long it would have slept."""
    pauses: list[float] = []
    return ChatJudge(server.url, "vlm", **{"timeout": 5.0, "wait": pauses.append, **options}), pauses


def test_a_question_goes_out_as_chat_completions_have_it(server: Server) -> None:
    """Fails if the pictures are not PNG data in order, the answer is not greedy, a key is sent unasked, or tokens and
    cost are not counted."""
    ask, _ = asked(server)
    assert ask("Is it?", [PICTURE, Image.new("RGB", (5, 5))]) == "Yes."
    (seen,) = server.seen
    assert seen["path"] == "/v1/chat/completions" and seen["key"] is None
    assert seen["body"]["model"] == "vlm" and seen["body"]["temperature"] == 0
    first, second, text = seen["body"]["messages"][0]["content"]
    data = first["image_url"]["url"].removeprefix("data:image/png;base64,")
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert sent.size == (8, 6) and sent.getpixel((0, 0)) == (10, 200, 30)
    assert second["type"] == "image_url" and text == {"type": "text", "text": "Is it?"}
    assert (ask.usage.requests, ask.usage.prompt_tokens, ask.usage.completion_tokens) == (1, 1000, 2)
    assert ask.usage.cost(3.0, 15.0) == pytest.approx(0.00303)


def test_a_busy_server_is_asked_again_and_told_waits_are_kept(server: Server) -> None:
    """Fails if a busy or broken answer is final, the pause does not double, or Retry-After is not obeyed (or obeyed for
    an hour)."""
    server.script = [
        (503, "busy", {}), (429, "slow", {"Retry-After": "7"}), (500, "oh", {}), (429, "x", {"Retry-After": "3600"}),
        (200, "No", {}),
    ]  # fmt: skip
    ask, pauses = asked(server, back_off=0.5)
    assert ask("?", [PICTURE]) == "No"
    assert pauses == [0.5, 7.0, 2.0, 60.0] and ask.usage.retries == 4 and ask.usage.requests == 5
    server.script = [(503, "busy", {})]
    with pytest.raises(AskFailed, match=r"says 503 .*busy \(asked 3 times\)") as why:
        asked(server, retries=2)[0]("?", [PICTURE])
    assert not why.value.fatal


def test_silence_ends_by_the_time_out_and_a_cut_answer_is_asked_again(server: Server) -> None:
    """Fails if a server that does not answer holds the graph, or half an answer is taken."""

    def silent(handler: Handler) -> None:
        time.sleep(0.6)

    def cut(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{")
        handler.close_connection = True

    server.script = [(200, silent, {}), (200, cut, {}), (200, "yes", {})]
    start = time.monotonic()
    ask, pauses = asked(server, timeout=0.2)
    assert ask("?", [PICTURE]) == "yes" and len(pauses) == 2
    assert time.monotonic() - start < 2
    server.shutdown()
    server.server_close()
    with pytest.raises(AskFailed, match=r"did not answer: .*refused"):
        asked(server, retries=0)[0]("?", [PICTURE])


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        b"[1]",
        b"\xff\xfe",
        b"x" * 2**21,
    ],
)
def test_what_is_no_completion_is_a_failure_and_no_answer(server: Server, body: bytes) -> None:
    """Fails if a malformed answer raises something else, or is taken for a no."""
    server.script = [(200, body, {})]
    with pytest.raises(AskFailed, match=r"gave no chat completion|broke off"):
        asked(server, retries=0)[0]("?", [PICTURE])


def test_other_forms_of_an_answer(server: Server) -> None:
    """Parts instead of a text; a service that renamed the limit and refuses a temperature. Fails if either is lost."""
    parts = [{"type": "text", "text": "Yes"}, {"type": "other"}, {"type": "text", "text": ", it is"}]
    server.script = [(200, json.dumps({"choices": [{"message": {"content": parts}}]}).encode(), {})]
    assert asked(server)[0]("?", [PICTURE]) == "Yes, it is"
    server.script = [(400, "Use 'max_completion_tokens' instead", {}), (200, "No", {})]
    ask, _ = asked(server)
    assert ask("?", [PICTURE]) == "No" and ask("?", [PICTURE]) == "No"
    assert "temperature" not in server.seen[-1]["body"] and "max_tokens" not in server.seen[-1]["body"]
    assert [("max_tokens" in one["body"]) for one in server.seen[-3:]] == [True, False, False]


def test_the_key_goes_to_its_host_alone_and_is_never_shown(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Fails if a graph can send any variable anywhere, a redirect takes the key along, or the key comes out in an
    error, a log or an answer that echoes it."""
    monkeypatch.setenv("OUR_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OUR_KEY", "OPENAI_API_KEY"):
        with pytest.raises(ValueError, match=r"is not sent to '127.0.0.1'"):
            asked(server, key_variable=name)
    with pytest.raises(ValueError, match="never the key itself") as pasted:
        asked(server, key_variable=KEY)
    assert KEY not in str(pasted.value)
    assert api_key("OPENAI_API_KEY", "https://api.openai.com/v1") == KEY
    monkeypatch.setenv("OUR_KEY_HOST", "judge.example")
    with pytest.raises(ValueError, match="unencrypted"):
        api_key("OUR_KEY", "http://judge.example/v1")
    with pytest.raises(ValueError, match=r"not sent to 'judge.example.evil.org'"):
        api_key("OUR_KEY", "https://judge.example.evil.org/v1")
    monkeypatch.setenv("OUR_KEY_HOST", "127.0.0.1")
    caplog.set_level(logging.DEBUG)
    server.script = [(503, f"bad key {KEY}", {}), (200, f"Yes {KEY}", {})]
    ask, _ = asked(server, key_variable="OUR_KEY")
    assert ask("?", [PICTURE]) == "Yes [key]" and server.seen[-1]["key"] == f"Bearer {KEY}"
    server.script = [(401, f"Incorrect API key provided: {KEY}", {})]
    with pytest.raises(AskFailed) as refused:
        ask("?", [PICTURE])
    assert refused.value.fatal and "[key]" in str(refused.value)
    for status in (302, 307):
        server.script = [(status, "there", {"Location": f"{server.url}/elsewhere"})]
        with pytest.raises(AskFailed, match="redirect is not followed"):
            ask("?", [PICTURE])
    assert not any("elsewhere" in one["path"] for one in server.seen)
    assert KEY not in caplog.text + str(refused.value) + repr(ask)
    monkeypatch.delenv("OUR_KEY")
    with pytest.raises(ValueError, match="is not set"):
        asked(server, key_variable="OUR_KEY")


@pytest.mark.parametrize("url", ["", "file:///etc/passwd", "ftp://x/y", "localhost:8000", "http://", "http://a:b@c/v1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    """Fails if a graph can read a file through urllib, or a password is saved with a graph."""
    with pytest.raises(ValueError, match=r"is no address|holds a password"):
        ChatJudge(url, "vlm")


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Yes", "yes"), ("no.", "no"), (" **Yes**, the same dog.", "yes"), ('"No"', "no"), ("YES!", "yes"),
        ("Yes it is", "yes"), ("No, but yes in a way", "no"), ("yes\nbecause", "yes"), ("Yes, no doubt.", "yes"),
        ("", "unclear"), ("The answer is yes", "unclear"), ("Not sure", "unclear"), ("Yesterday", "unclear"),
        ("Yes and no", "unclear"), ("yes/no", "unclear"), ("No doubt it is the same", "unclear"), ("Eyes", "unclear"),
        ("Sure", "unclear"), ("I would say no", "unclear"), ("Yes or no?", "unclear"), ("No idea.", "unclear"),
        ("No-one", "unclear"), ("oui", "unclear"), ("1. Yes", "unclear"),
    ],
)  # fmt: skip
def test_only_a_leading_yes_or_no_counts(answer: str, verdict: str) -> None:
    """Fails if a yes anywhere in the text is one, as in the public code."""
    assert parse_answer(answer) == verdict


@given(st.lists(st.sampled_from(["yes", "no", "unclear", "failed"]), max_size=7))
@settings(max_examples=60)
def test_the_majority_is_strict_and_failures_are_neither(verdicts: list[Any]) -> None:
    """Against every way in which the failed ones could have come out. Fails if a tie wins, or a failure is a no."""
    failed = verdicts.count("failed")
    outcomes = {2 * (verdicts.count("yes") + extra) > len(verdicts) for extra in range(failed + 1)}
    expected = outcomes.pop() if len(outcomes) == 1 and verdicts else None
    assert strict_majority(verdicts) is expected


def pictures(*levels: float) -> torch.Tensor:
    return torch.stack([torch.full((3, 8, 8), level) for level in levels])


def test_a_batch_by_hand() -> None:
    """A judge by table: references at .2, .4, .6 are of the subject, .8 of the style. Picture 0 is like one of three
    references (no majority), 1 like two, but not the style, 2 like two and the style, 3 unclear. Fails if a majority is
    of the wrong side, one side is enough, the class noun is lost, or attempts are counted from 0."""
    answers = {0: "yno n", 1: "yyn n", 2: "yyn y", 3: "yyn ?"}
    seen: list[tuple[str, float, float]] = []

    def ask(question: str, shown: Sequence[Image.Image]) -> str:
        reference, picture = (one.getpixel((0, 0))[0] / 255 for one in shown)
        seen.append((question, reference, picture))
        number = round(picture * 10)
        place = {2: 0, 4: 1, 6: 2, 8: 4}[round(reference * 10)]
        return {"y": "Yes.", "n": "No.", "?": "Maybe", "o": "no"}[answers[number][place]]

    steps: list[tuple[int, int]] = []
    found = judge(
        pictures(0.0, 0.1, 0.2, 0.3), pictures(0.2, 0.4, 0.6), pictures(0.8), ask, subject="dog",
        progress=lambda *step: steps.append(step),
    )  # fmt: skip
    assert [one.subject for one in found.pictures] == [False, True, True, True]
    assert [one.style for one in found.pictures] == [False, False, True, False]
    assert [one.good for one in found.pictures] == [False, False, True, False]
    assert found.pictures[1].subject_share == pytest.approx(2 / 3)
    assert (found.average, found.best_of_n, found.attempts, found.unclear) == (0.25, True, 3, 1)
    assert len(found.transcript) == len(seen) == 16 and steps[0] == (0, 16) and steps[-1] == (16, 16)
    assert "very same dog?" in seen[0][0] and "style" in seen[3][0]
    assert found.transcript[3].side == "style" and found.transcript[2].reference == 2
    alone = judge(pictures(0.2), pictures(0.2, 0.4), None, ask)
    assert alone.pictures[0].good is True and alone.pictures[0].style is None
    half = judge(pictures(0.0), pictures(0.2, 0.4), None, ask)
    assert half.pictures[0].good is False and half.attempts is None and half.best_of_n is False


def test_failures_are_counted_and_end_what_is_hopeless() -> None:
    """Fails if one failure spoils a batch, a refused key is asked on, or answers that were paid for are thrown away."""
    calls = []

    def flaky(question: str, shown: Sequence[Image.Image]) -> str:
        calls.append(1)
        if len(calls) == 2:
            raise AskFailed("busy")
        return "Yes"

    found = judge(pictures(0.1, 0.2), pictures(0.2), None, flaky)
    assert [one.good for one in found.pictures] == [True, None] and found.failed == 1
    assert found.average == 1.0 and found.best_of_n is True and found.attempts == 1

    def refused(question: str, shown: Sequence[Image.Image]) -> str:
        raise AskFailed("401", fatal=True)

    with pytest.raises(AskFailed, match="401"):
        judge(pictures(0.1), pictures(0.2), None, refused)

    count = []

    def ends(question: str, shown: Sequence[Image.Image]) -> str:
        count.append(1)
        if len(count) > 1:
            raise AskFailed("away")
        return "No"

    found = judge(pictures(*[0.1] * 9), pictures(0.2), None, ends)
    assert len(count) == 4 and found.failed == 8 and "not asked any more, after: away" in found.transcript[-1].answer
    assert found.average == 0.0 and found.best_of_n is None and found.attempts is None


def test_pictures_are_shown_with_a_long_side_of_512_and_never_enlarged() -> None:
    """Fails if a large picture is sent whole, is stretched, or a small one is blown up."""
    sizes = []

    def ask(question: str, shown: Sequence[Image.Image]) -> str:
        sizes.append([one.size for one in shown])
        return "Yes"

    judge(torch.rand(1, 3, 300, 1024), torch.rand(1, 3, 20, 10), None, ask)
    assert sizes == [[(10, 20), (512, 150)]]


def test_nothing_to_judge_by_is_refused() -> None:
    """Fails if a batch without references is good, or a question that cannot be filled goes out."""
    with pytest.raises(ValueError, match="nothing to judge by"):
        judge(pictures(0.1), None, None, lambda *_: "Yes")
    with pytest.raises(ValueError, match="placeholder other than"):
        judge(pictures(0.1), pictures(0.1), None, lambda *_: "Yes", subject_question="Is it a {dog}?")
    with pytest.raises(ValueError, match="must lie in"):
        judge(torch.full((1, 3, 4, 4), torch.nan), pictures(0.1), None, lambda *_: "Yes")
