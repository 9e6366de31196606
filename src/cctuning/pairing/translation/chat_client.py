"""Ask a model behind an OpenAI-compatible chat endpoint (vLLM, `transformers serve`, llama.cpp, hosted services).

The `openai` package sends each request and retries it (429, 5xx, a timeout, a lost connection) with exponential
back-off and the delay that `Retry-After` asks for. Added here: several requests at once, a rate limit that retries
respect too, a cache that holds an answer on disk before anything else happens to it, and three kinds of failure:

- temporary: the retries were not enough. The request gets a problem that another run may not meet.
- of the request: cut off, empty, filtered or refused. The request gets a problem.
- of the setup: no such host, model or key, or nothing but failures. A `UserError` ends the run; answers are kept.
"""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import openai

from cctuning.errors import UserError
from cctuning.pairing.translation.base import Answer
from cctuning.pairing.translation.cache import Cache
from cctuning.settings import from_mapping

Message = Mapping[str, str]  # {"role": ..., "content": ...}
Request = Sequence[Message] | Answer
HOPELESS = 20  # failed requests in a row after which a run stops
_SETUP = {401: "the key is not accepted", 403: "access is refused", 404: "there is no such address or model"}


class _Stopped(openai.OpenAIError):
    """The run was stopped before the request was sent."""


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """Server, model and request options."""

    base_url: str = field(metadata={"help": "The server's address up to /v1, e.g. http://localhost:8000/v1."})
    model: str = field(metadata={"help": "Name of the model on the server."})
    api_key_env: str | None = field(
        default=None, metadata={"help": "Environment variable with the API key, which is never written to disk."}
    )
    temperature: float | None = field(
        default=0.0, metadata={"help": "Sampling temperature; null: the server's default.", "least": 0}
    )
    max_tokens: int | None = field(
        default=2048, metadata={"help": "Longest answer, in tokens; null: the server's default.", "least": 1}
    )
    body: dict[str, Any] = field(default_factory=dict, metadata={"help": "More fields of the request, e.g. top_p."})
    concurrency: int = field(default=8, metadata={"help": "Concurrent requests.", "least": 1})
    requests_per_minute: float | None = field(
        default=None, metadata={"help": "Most requests per minute.", "least": 0.001}
    )
    timeout: float = field(default=120.0, metadata={"help": "Seconds to wait for an answer.", "least": 0.001})
    max_retries: int = field(default=6, metadata={"help": "Retries of a request.", "least": 0})

    def __post_init__(self) -> None:
        address = urllib.parse.urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise UserError(f"base_url: expected an address such as http://localhost:8000/v1, got {self.base_url!r}.")
        if address.username or address.password:
            raise UserError(
                "base_url: contains a name or password; put the key into a variable and name it in api_key_env."
            )
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            raise UserError(
                f"api_key_env: the environment variable {self.api_key_env!r} is not set; put the API key into it."
            )
        for reserved in ("model", "messages", "stream", "n"):
            if reserved in self.body:
                raise UserError(f"body: {reserved!r} cannot be set here; expected other fields of the request.")


class ChatClient:
    """Asks a chat endpoint.

    Args:
        options: where and how.
        cache: where `complete` looks before it asks, and keeps answers.
    """

    def __init__(self, options: ClientOptions, cache: Cache | None = None) -> None:
        self.options = options
        self.cache = cache
        self._key = os.environ[options.api_key_env] if options.api_key_env else ""
        self._lock = threading.Lock()
        self._next = 0.0  # when the next request may be sent, on the monotonic clock
        self._stop = threading.Event()
        self._counts: Counter[str] = Counter(requests=0, retries=0, prompt_tokens=0, completion_tokens=0, cache_hits=0)
        self._asked = 0  # requests without retries
        self._failed = 0  # requests in a row
        self._answered = False
        self._client = openai.OpenAI(
            api_key=self._key or "none",  # never the key in OPENAI_API_KEY, which is for another server
            base_url=options.base_url,
            timeout=options.timeout,
            max_retries=options.max_retries,
            http_client=openai.DefaultHttpxClient(
                follow_redirects=False,  # a redirected request could take the key to another host
                event_hooks={"request": [self._wait_for_turn], "response": [self._hold]},
            ),
        )

    @classmethod
    def open(cls, options: Mapping[str, Any], cache_dir: Path | None, where: str = "chat") -> ChatClient:
        """A client from the options of a recipe, with a cache in `cache_dir`.

        Raises:
            UserError: an unknown option, a bad value, or an unusable cache.
        """
        return cls(from_mapping(ClientOptions, options, where), Cache(cache_dir) if cache_dir is not None else None)

    def identity(self) -> dict[str, Any]:
        """What decides an answer besides the messages; not the address, where the same model may move."""
        return {key: asdict(self.options)[key] for key in ("model", "temperature", "max_tokens", "body")}

    def complete(self, conversations: Iterable[Sequence[Message]]) -> Iterator[Answer]:
        """One answer for each conversation, in the same order; conversations are read as they are needed.

        Equal conversations in progress at once share one request.

        Raises:
            UserError: the setup is wrong. Answers until then are in the cache.
        """
        waiting: dict[int, Answer] = {}
        keys: dict[int, bytes] = {}  # of requests
        equal: dict[bytes, list[int]] = {}  # others that wait for the same answer
        identity = self.identity()
        following = 0

        def requests() -> Iterator[tuple[int, Request]]:
            for index, messages in enumerate(conversations):
                key = Cache.key(identity, json.dumps(messages, sort_keys=True))
                if key in equal:
                    equal[key].append(index)
                    continue
                found = self.cache.get(key) if self.cache is not None else None
                if found is None:
                    keys[index], equal[key] = key, []
                self._count("cache_hits", found is not None)
                yield index, found or messages

        def keep(index: int, answer: Answer) -> None:
            if self.cache is not None:
                self.cache.put([(keys[index], answer)])

        for index, answer in self.answers(requests(), keep):
            others = equal.pop(keys.pop(index)) if index in keys else []
            waiting |= dict.fromkeys([index, *others], answer)
            while following in waiting:
                yield waiting.pop(following)
                following += 1

    def answers(
        self, requests: Iterable[tuple[int, Request]], keep: Callable[[int, Answer], None]
    ) -> Iterator[tuple[int, Answer]]:
        """Answers as they arrive, each with its index; `keep` is called first, in the thread that received it.

        A request that is already an `Answer` is passed on. One call at a time.

        Raises:
            UserError: the setup is wrong, after the requests in progress are done.
        """
        pool = ThreadPoolExecutor(self.options.concurrency)
        under_way: dict[Future[Answer], int] = {}

        def ask(index: int, messages: Sequence[Message]) -> Answer:
            answer = self._ask(messages)
            keep(index, answer)
            return answer

        def arrived() -> Iterator[tuple[int, Answer]]:
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                yield under_way.pop(future), future.result()

        try:
            for index, request in requests:
                if isinstance(request, Answer):
                    yield index, request
                    continue
                # The oldest may be slow; the others continue, but only so far that few answers wait behind it.
                while len(under_way) >= self.options.concurrency or (
                    under_way and index - min(under_way.values()) > 64 * self.options.concurrency
                ):
                    yield from arrived()
                under_way[pool.submit(ask, index, request)] = index
            while under_way:
                yield from arrived()
        finally:
            self._stop.set()  # nothing more is sent; requests in progress are finished
            pool.shutdown(wait=True, cancel_futures=True)
            self._stop.clear()

    def _ask(self, messages: Sequence[Message]) -> Answer:
        """One answer; `openai` retries what is temporary, and here an answer that is not a chat completion."""
        options, problem = self.options, ""
        given: dict[str, Any] = {"temperature": options.temperature, "max_tokens": options.max_tokens}
        body = {name: value for name, value in given.items() if value is not None} | options.body
        create: Any = self._client.chat.completions.with_raw_response.create
        with self._lock:
            self._asked += 1
        for _ in range(options.max_retries + 1):
            try:
                response = create(model=options.model, messages=list(messages), extra_body=body)
            except _Stopped:
                return Answer(None, "not asked: the run was stopped", passing=True)
            except openai.APIStatusError as error:
                return self._status(error)
            except openai.APITimeoutError:
                return self._fail(f"no answer in {options.timeout:g} s")
            except openai.APIConnectionError as error:
                return self._fail(f"no connection: {error.__cause__ or error}", 1 if not self._answered else HOPELESS)
            answer = self._read(response.content)
            if answer is not None:
                self._answered, self._failed = True, 0
                return answer
            problem = "the answer is not a chat completion"
        return self._fail(problem)

    def _status(self, error: openai.APIStatusError) -> Answer:
        """What an error status means.

        Raises:
            UserError: the address, the key or the model is wrong.
        """
        code, body = error.status_code, " ".join(error.response.text.split())
        said = (body.replace(self._key, "***") if self._key else body)[:300]
        if code in _SETUP or 300 <= code < 400:
            location = error.response.headers.get("Location")
            what = _SETUP.get(code, f"redirected to {location}; give that address")
            raise UserError(f"{self.options.base_url}: HTTP {code}: {what}. {said}") from None
        if code not in (408, 409, 429) and code < 500:
            # A run in which every request is refused has a field that this server does not take.
            return self._fail(f"refused with HTTP {code}: {said}", HOPELESS // 4, once_answered=False)
        return self._fail(f"failed {self.options.max_retries + 1} times: HTTP {code}: {said}")

    def _fail(self, problem: str, limit: int = HOPELESS, once_answered: bool = True) -> Answer:
        """A temporary problem.

        Args:
            problem: what happened.
            limit: how many in a row end the run.
            once_answered: whether they do so after the server has answered other requests.

        Raises:
            UserError: `limit` requests failed in a row.
        """
        with self._lock:
            self._failed += once_answered or not self._answered
            if self._failed < limit or (self._answered and not once_answered):
                return Answer(None, problem, passing=True)
            raise UserError(
                f"{self.options.base_url}: {self._failed} requests failed in a row; the last: {problem}. Correct the "
                "server or the options and run the same command again: what was answered is kept."
            )

    def _wait_for_turn(self, request: Any) -> None:
        """Before every request: wait until the rate limit, or the delay that a server asked for, has passed."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            if self.options.requests_per_minute:
                self._next = turn + 60.0 / self.options.requests_per_minute
        if self._stop.wait(max(0.0, turn - now)):
            raise _Stopped
        self._count("requests")

    def _hold(self, response: Any) -> None:
        """After every response: where the server is too busy, no request is sent before it says."""
        seconds = response.headers.get("Retry-After", "")
        if response.status_code >= 400 and seconds.isdecimal():
            with self._lock:
                self._next = max(self._next, time.monotonic() + min(int(seconds), 120))

    def _read(self, body: bytes) -> Answer | None:
        """The answer in a response, its tokens counted; None if the response is not a chat completion."""
        try:
            content = json.loads(body)
            usage = content.get("usage") or {}
            choice = content["choices"][0]
            text, reason = choice["message"].get("content"), choice.get("finish_reason")
            for name in ("prompt_tokens", "completion_tokens"):
                self._count(name, int(usage.get(name) or 0))
        except (ValueError, LookupError, TypeError, AttributeError):
            return None
        if reason == "length":
            return Answer(None, "cut off at the token limit (finish_reason: length); raise max_tokens")
        if reason == "content_filter":
            return Answer(None, "withheld by the server's content filter")
        if not isinstance(text, str) or not text.strip():
            return Answer(None, f"empty answer (finish_reason: {reason})")
        return Answer(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))

    def _count(self, name: str, number: int = 1) -> None:
        with self._lock:
            self._counts[name] += number

    def usage(self) -> dict[str, int | float]:
        """Requests sent (with retries), retries, tokens as the server reports them, and cache hits."""
        with self._lock:
            return {**self._counts, "retries": self._counts["requests"] - self._asked}

    def close(self) -> None:
        """Stop sending, and close the cache."""
        self._stop.set()
        self._client.close()
        if self.cache is not None:
            self.cache.close()
