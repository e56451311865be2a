"""A judge behind an OpenAI-compatible chat-completions address: a local server (vLLM, llama.cpp, Ollama) or a service.

A graph may come from anyone, and names the address. So a key is read only from an environment variable, and is sent
only to the host that the environment itself names for it (``<NAME>_HOST``), or, of a few known variables, to its owner.
It is never logged, shown in an error, or sent on by a redirect.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from .judge import AskFailed

log = logging.getLogger(__name__)

KNOWN_HOSTS = {
    "OPENAI_API_KEY": "api.openai.com",
    "OPENROUTER_API_KEY": "openrouter.ai",
    "GEMINI_API_KEY": "generativelanguage.googleapis.com",
    "MISTRAL_API_KEY": "api.mistral.ai",
}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,80}")
_LARGEST = 1 << 20  # bytes of an answer
_LONGEST_WAIT = 60.0


@dataclass
class Usage:
    """What was asked, and what it cost by the prices given.

    Attributes:
        requests, retries: sent in all, and of these again.
        prompt_tokens, completion_tokens: as the server says; 0 where it does not.
    """

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def cost(self, prompt_price: float, completion_price: float) -> float:
        """At prices for a million tokens."""
        return (self.prompt_tokens * prompt_price + self.completion_tokens * completion_price) / 1e6


@dataclass
class ChatJudge:
    """An ``Ask`` over HTTP.

    Attributes:
        url: up to ``/v1``, or to ``/chat/completions``.
        model: as the server calls it.
        key_variable: name of the environment variable with the key; empty: none is sent.
        timeout: seconds for an answer to begin, and for each part of it.
        retries: how often a question is sent again when the server is busy or away.
        back_off: seconds before the first retry; doubled each time, unless the server says how long.
        max_tokens: of an answer.
        wait: sleeps; may raise to cancel.
    """

    url: str
    model: str
    key_variable: str = ""
    timeout: float = 60.0
    retries: int = 4
    back_off: float = 1.0
    max_tokens: int = 64
    wait: Callable[[float], None] = time.sleep
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self) -> None:
        self._address = _address(self.url)
        if not self.model.strip():
            raise ValueError("no model is named; write its name as the server calls it, e.g. qwen2.5-vl-7b")
        self._key = api_key(self.key_variable, self._address)
        self._newer = False  # services that have renamed max_tokens and refuse a temperature

    def __call__(self, question: str, pictures: Sequence[Image.Image]) -> str:
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _data_url(p)}} for p in pictures]
        content.append({"type": "text", "text": question})
        for attempt in range(self.retries + 1):
            try:
                return self._sent(content)
            except _Busy as why:
                if attempt == self.retries:
                    raise AskFailed(f"{why} (asked {attempt + 1} times)") from None
                pause = why.after if why.after is not None else self.back_off * 2**attempt
                log.info("the judge did not answer (%s); again in %.1f s", why, min(pause, _LONGEST_WAIT))
                self.usage.retries += 1
                self.wait(min(pause, _LONGEST_WAIT))
        raise AssertionError("unreachable")

    def _sent(self, content: list[dict[str, Any]]) -> str:
        asked = {"model": self.model.strip(), "messages": [{"role": "user", "content": content}]}
        limits = {"max_completion_tokens": 16 * self.max_tokens} if self._newer else {"max_tokens": self.max_tokens}
        greedy = {} if self._newer else {"temperature": 0}
        headers = {"Content-Type": "application/json", "User-Agent": "likeness"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = json.dumps({**asked, **limits, **greedy}).encode()
        request = urllib.request.Request(self._address, data, headers, method="POST")
        self.usage.requests += 1
        try:
            with _OPENER.open(request, timeout=self.timeout) as reply:
                body = reply.read(_LARGEST + 1)
                if reply.length and len(body) <= _LARGEST:  # less came than was announced, of which read says nothing
                    raise ConnectionError("the answer broke off")
        except urllib.error.HTTPError as why:
            return self._refused(why, content)
        except (OSError, ValueError, urllib.error.URLError) as why:  # a time-out, a refused connection, a cut one
            raise _Busy(self._clean(f"{self._address} did not answer: {getattr(why, 'reason', why)}")) from None
        except Exception as why:  # http.client has its own for half an answer
            raise _Busy(self._clean(f"{self._address} broke off: {type(why).__name__}: {why}")) from None
        return self._read(body)

    def _refused(self, why: urllib.error.HTTPError, content: list[dict[str, Any]]) -> str:
        try:
            says = " ".join(why.read(4000).decode("utf-8", "replace").split())
        except OSError:
            says = ""
        told = self._clean(f"{self._address} says {why.code} {why.reason}: {says[:300]}")
        if why.code in _AGAIN:
            raise _Busy(told, _seconds(why.headers.get("Retry-After")))
        if why.code == 400 and not self._newer and ("max_completion_tokens" in says or "temperature" in says):
            self._newer = True
            return self._sent(content)
        if 300 <= why.code < 400:
            told += " A redirect is not followed, so that no key goes astray; write the address that it leads to."
        if why.code in (401, 403) and not self._key:
            told += " Name the environment variable that holds the key."
        raise AskFailed(told, fatal=why.code != 413)  # one picture may be too large for it, and the next not

    def _read(self, body: bytes) -> str:
        try:
            if len(body) > _LARGEST:
                raise ValueError("more than a megabyte")
            answer = json.loads(body)
            text = answer["choices"][0]["message"]["content"]
            if isinstance(text, list):
                text = "".join(part.get("text", "") for part in text if part.get("type") == "text")
            if not isinstance(text, str):
                raise ValueError(f"content is {type(text).__name__}")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as why:
            begins = body[:120].decode("utf-8", "replace")
            told = f"{self._address} gave no chat completion ({type(why).__name__}: {why}): {begins!r}"
            raise AskFailed(self._clean(told)) from None
        counts = answer.get("usage")
        if isinstance(counts, dict):
            self.usage.prompt_tokens += _count(counts.get("prompt_tokens"))
            self.usage.completion_tokens += _count(counts.get("completion_tokens"))
        return self._clean(text)

    def _clean(self, text: str) -> str:
        """Without the key, should a server send it back."""
        return text.replace(self._key, "[key]") if self._key else text


def api_key(variable: str, address: str) -> str:
    """The key in an environment variable, if it may be sent to the address; empty where no variable is named.

    Raises:
        ValueError: the variable is not set, or nothing says that its key is for this host. Never says the key.
    """
    name = variable.strip()
    if not name:
        return ""
    if not _NAME.fullmatch(name):  # not repeated here: it may be a key
        raise ValueError(
            "key_variable is no name of an environment variable; write the name there, never the key itself"
        )
    host = (urlsplit(address).hostname or "").lower()
    allowed = os.environ.get(f"{name}_HOST", KNOWN_HOSTS.get(name, "")).strip().lower()
    if host != allowed:
        raise ValueError(
            f"the key that key_variable names is not sent to {host!r}, for a graph could so carry keys away. If it is "
            f"for this host, set a second variable before ComfyUI starts: the same name with _HOST, to {host}"
        )
    key = os.environ.get(name, "").strip()
    if not key:
        raise ValueError("the environment variable that key_variable names is not set where ComfyUI runs")
    if urlsplit(address).scheme != "https" and host not in _LOOPBACK:
        raise ValueError(f"the key would go to {host!r} unencrypted; use an https address")
    return key


class _Busy(Exception):
    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _address(url: str) -> str:
    found = url.strip().rstrip("/")
    parts = urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url[:100]!r} is no address of a server; expected one like http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise ValueError(
            "the address holds a password, which would be saved with the graph; use an environment variable"
        )
    return found if found.endswith("/chat/completions") else f"{found}/chat/completions"


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:  # a date
        return None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
