"""A small client of the OpenAI chat protocol, which vLLM, `transformers serve`, llama.cpp and hosted services speak.

What it takes care of: several requests at once, a rate limit, retries that honour what the server asks for, answers
that are no answers (cut off, empty, garbled), the count of what was paid, and that an answer once received is on disk
before anything else happens. It rests on the standard library: the endpoint is one POST, and the HTTP package that
huggingface_hub brings has changed its name between releases.

A fault is one of three. *Of the moment* (429, 5xx, a timeout, a lost connection, an answer that is no JSON): tried
again with exponential back-off, and if it stays, a problem of this request that another run may not meet. *Of this
request* (cut off, empty, withheld): a problem that would come again. *Of the set-up* (no such host, model or key;
nothing but refusals): a `UserError` that ends the run before it costs more; what was answered is kept.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cctuning.errors import UserError
from cctuning.pairing.translation.base import Answer, read_options
from cctuning.pairing.translation.cache import Cache

Message = Mapping[str, str]  # {"role": ..., "content": ...}
Request = Sequence[Message] | Answer
LONGEST_WAIT = 300.0  # seconds: a server that asks for more is asked again after this
HOPELESS = 20  # requests given up in a row, with none answered between, after which a run stops
_SETUP = {401: "the key is not accepted", 403: "access is refused", 404: "there is no such address or model"}


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """Where the server is and how it is asked."""

    base_url: str = field(metadata={"help": "The server's address up to /v1, e.g. http://localhost:8000/v1."})
    model: str = field(metadata={"help": "Name of the model, as the server calls it."})
    api_key_env: str | None = field(
        default=None, metadata={"help": "Environment variable that holds the key. The key itself is never written."}
    )
    temperature: float | None = field(
        default=0.0, metadata={"help": "Sampling temperature; null leaves it to the server.", "least": 0}
    )
    max_tokens: int | None = field(
        default=2048, metadata={"help": "Longest answer, in tokens; null leaves it to the server.", "least": 1}
    )
    body: dict[str, Any] = field(default_factory=dict, metadata={"help": "More fields of the request, e.g. top_p."})
    concurrency: int = field(default=8, metadata={"help": "Requests under way at once.", "least": 1})
    requests_per_minute: float | None = field(
        default=None, metadata={"help": "No more requests than this a minute.", "least": 0.001}
    )
    timeout: float = field(default=120.0, metadata={"help": "Seconds to wait for an answer.", "least": 0.001})
    max_retries: int = field(default=6, metadata={"help": "How often a request is tried again.", "least": 0})

    def __post_init__(self) -> None:
        address = urllib.parse.urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise UserError(f"base_url: expected an address such as http://localhost:8000/v1, got {self.base_url!r}.")
        if address.username or address.password:
            raise UserError(
                "base_url: holds a name or password; put the key into a variable and name it in api_key_env."
            )
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            raise UserError(
                f"api_key_env: the environment variable {self.api_key_env!r} is not set; put the key in it."
            )
        for reserved in ("model", "messages", "stream", "n"):
            if reserved in self.body:
                raise UserError(f"body: {reserved!r} cannot be set here; expected other fields of the request.")


class ChatClient:
    """Asks a chat endpoint; see the module for what it does about faults."""

    def __init__(self, options: ClientOptions, cache: Cache | None = None) -> None:
        """Nothing is sent yet.

        Args:
            options: where and how.
            cache: where `complete` looks before it asks, and keeps what it was told.
        """
        self.options = options
        self.cache = cache
        self._key = os.environ[options.api_key_env] if options.api_key_env else None
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._lock = threading.Lock()
        self._next = 0.0  # when the next request may be sent, on the monotonic clock
        self._stop = threading.Event()
        self._counts: Counter[str] = Counter(requests=0, retries=0, prompt_tokens=0, completion_tokens=0, cache_hits=0)
        self._given_up = 0  # requests in a row
        self._answered = False

    @classmethod
    def open(cls, options: Mapping[str, Any], cache_dir: Path | None, where: str = "chat") -> ChatClient:
        """A client from what a recipe holds, with a cache in `cache_dir`.

        Raises:
            UserError: an unknown option, a bad value, a cache that cannot be used.
        """
        return cls(read_options(ClientOptions, options, where), Cache(cache_dir) if cache_dir is not None else None)

    def identity(self) -> dict[str, Any]:
        """What decides an answer beside the messages. Not the address: the same model elsewhere is the same model."""
        return {key: asdict(self.options)[key] for key in ("model", "temperature", "max_tokens", "body")}

    def complete(self, conversations: Iterable[Sequence[Message]]) -> Iterator[Answer]:
        """One answer for each conversation, in the same order; reads only as far ahead as it asks.

        Equal conversations that are under way at once are asked once, and have one answer or one problem.

        Raises:
            UserError: a fault of the set-up. All answers received until then are in the cache.
        """
        waiting: dict[int, Answer] = {}
        keys: dict[int, bytes] = {}  # of those that are asked for
        equal: dict[bytes, list[int]] = {}  # who else waits for the answers to these
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
        """Answers as they come, each with its index. `keep` is called first, from the thread that received it.

        A request that is already an `Answer` is passed on in its place. One call at a time.

        Raises:
            UserError: a fault of the set-up, once what is under way has come in and been kept.
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
                # the oldest may be slow: the others go on, but not so far that answers pile up behind it
                while len(under_way) >= self.options.concurrency or (
                    under_way and index - min(under_way.values()) > 64 * self.options.concurrency
                ):
                    yield from arrived()
                under_way[pool.submit(ask, index, request)] = index
            while under_way:
                yield from arrived()
        finally:
            self._stop.set()  # ends the waits between retries; requests under way are paid for, and kept
            pool.shutdown(wait=True, cancel_futures=True)
            self._stop.clear()

    def _ask(self, messages: Sequence[Message]) -> Answer:
        """Ask until there is an answer or no more retries."""
        reason = "stopped"
        for attempt in range(self.options.max_retries + 1):
            if attempt:
                self._count("retries")
            if not self._wait_for_turn():
                return Answer(None, f"not asked: the run was stopped ({reason})", passing=True)
            reason, pause = "", 0.0
            try:
                with self._opener.open(self._request(messages), timeout=self.options.timeout) as response:
                    answer = self._read(response.read())
                if answer is not None:
                    self._answered, self._given_up = True, 0
                    return answer
                reason = "the answer is not a chat completion"
            except urllib.error.HTTPError as error:
                said = self._said(error)
                if error.code in _SETUP or 300 <= error.code < 400:
                    what = _SETUP.get(error.code, f"redirected to {error.headers.get('Location')}; give that address")
                    raise UserError(f"{self.options.base_url}: HTTP {error.code}: {what}. {said}") from None
                if error.code not in (408, 409, 425, 429) and error.code < 500:
                    # not paid for; a run in which nothing but refusals come has a field that this server does not take
                    return self._give_up(f"refused with HTTP {error.code}: {said}", HOPELESS // 4, by_now=False)
                reason, pause = f"HTTP {error.code}: {said}", _retry_after(error.headers.get("Retry-After"))
            except TimeoutError:
                reason = f"no answer in {self.options.timeout:g} s"
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                timed_out = isinstance(error, urllib.error.URLError) and isinstance(error.reason, TimeoutError)
                reason = f"no answer in {self.options.timeout:g} s" if timed_out else f"no connection: {error}"
            if pause:
                self._hold(pause)
            elif attempt < self.options.max_retries:  # jitter: clients that failed together do not come back together
                self._stop.wait(random.uniform(0.5, 1.0) * min(0.5 * 2**attempt, 60.0))
        never = not self._answered and reason.startswith("no connection")
        problem = f"given up after {self.options.max_retries + 1} requests: {reason}"
        return self._give_up(problem, 1 if never else HOPELESS)

    def _give_up(self, problem: str, limit: int, by_now: bool = True) -> Answer:
        """A passing problem, unless `limit` requests in a row were given up: then the run is hopeless.

        Args:
            problem: what happened to this request.
            limit: how many in a row are too many.
            by_now: whether a server that has answered before may have become hopeless.
        """
        with self._lock:
            self._given_up += by_now or not self._answered
            if self._given_up < limit or (self._answered and not by_now):
                return Answer(None, problem, passing=True)
            raise UserError(
                f"{self.options.base_url}: {self._given_up} requests given up in a row; the last: {problem}. "
                "Mend the server or the options and run the same command again: what was answered is kept."
            )

    def _wait_for_turn(self) -> bool:
        """Wait until the rate limit, or the pause a server asked for, lets the next request go; False if stopped."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            if self.options.requests_per_minute:
                self._next = turn + 60.0 / self.options.requests_per_minute
        if self._stop.wait(max(0.0, turn - now)):
            return False
        self._count("requests")
        return True

    def _hold(self, pause: float) -> None:
        """Let no request go for so many seconds: the server said that it is too busy for all of us."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + pause)

    def _request(self, messages: Sequence[Message]) -> urllib.request.Request:
        options = self.options
        content: dict[str, Any] = {"model": options.model, "messages": list(messages), **options.body}
        for name in ("temperature", "max_tokens"):
            if getattr(options, name) is not None:
                content.setdefault(name, getattr(options, name))
        address = options.base_url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(address, json.dumps(content).encode(), {"Content-Type": "application/json"})
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        return request

    def _read(self, body: bytes) -> Answer | None:
        """The answer in a response, with its tokens counted; None if the response is no chat completion."""
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

    def _said(self, error: urllib.error.HTTPError) -> str:
        """The first words of an error's body, without the key should the server repeat it."""
        try:
            text = error.read(2000).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            return ""
        text = " ".join(text.split())
        return (text.replace(self._key, "***") if self._key else text)[:300]

    def _count(self, name: str, number: int = 1) -> None:
        with self._lock:
            self._counts[name] += number

    def usage(self) -> dict[str, int | float]:
        """Requests sent (retries among them), retries, tokens as the server reports them, and cache hits."""
        with self._lock:
            return dict(self._counts)

    def close(self) -> None:
        """End the waits between retries, and close the cache."""
        self._stop.set()
        if self.cache is not None:
            self.cache.close()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET, perhaps at another host: it is reported as the error that it is."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for, in either of its forms; 0 if there is none."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else 0.0
