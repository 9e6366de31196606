"""A chat server to test against: a process on loopback that speaks the OpenAI protocol, with faults on demand.

Run as a script it prints its port. Its "translation" moves every Latin letter one on in the alphabet, so that a test
can tell from an answer what was asked. Words in a text ask for a fault: `broken-once` gives HTTP 500 the first time
this text is asked, `cut-off` an answer at the token limit, and so on (`answer` below).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NEXT = str.maketrans(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "bcdefghijklmnopqrstuvwxyzaBCDEFGHIJKLMNOPQRSTUVWXYZA"
)
TEXT = re.compile(r"<text>\n(.*)\n</text>", re.DOTALL)


def translated(text: str) -> str:
    return text.translate(NEXT)


class State:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()  # by text
        self.times: list[float] = []
        self.requests = self.under_way = self.most_under_way = 0
        self.prompt_tokens = self.completion_tokens = 0


class Handler(BaseHTTPRequestHandler):
    state: State

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        state = self.state
        with state.lock:
            names = ("asked", "times", "requests", "most_under_way", "prompt_tokens", "completion_tokens")
            self.reply(200, json.dumps({name: getattr(state, name) for name in names}))

    def do_POST(self) -> None:
        state = self.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        (text,) = TEXT.findall(content) or [content]
        with state.lock:
            state.requests += 1
            state.times.append(time.monotonic())
            state.under_way += 1
            self.counted = True
            state.most_under_way = max(state.most_under_way, state.under_way)
            state.asked[text] += 1
            first = state.asked[text] == 1
        try:
            time.sleep(state.options.delay)
            self.answer(body, text, first)
        except BrokenPipeError:
            pass  # the client has gone
        finally:
            self.done()

    def done(self) -> None:
        """No longer under way: before the answer leaves, since its client asks again the moment it has it."""
        with self.state.lock:
            self.state.under_way -= self.counted
            self.counted = False

    def answer(self, body: dict, words: str, first: bool) -> None:
        """Answer, or fail as the words in the text ask for."""
        options = self.state.options
        if options.key and self.headers["Authorization"] != f"Bearer {options.key}":
            return self.reply(401, json.dumps({"error": {"message": f"bad key {self.headers['Authorization']}"}}))
        if body["model"] != "tiny":
            return self.reply(404, json.dumps({"error": {"message": f"The model `{body['model']}` does not exist."}}))
        if "redirect" in words:
            return self.reply(307, "", {"Location": "http://elsewhere.invalid/v1/chat/completions"})
        if "refuse" in words or "bad_field" in body:
            return self.reply(400, json.dumps({"error": {"message": "maximum context length exceeded"}}))
        if ("limit-once" in words and first) or "limit-always" in words:
            return self.reply(429, "slow down", {"Retry-After": "1"})
        if "limit-for-an-hour" in words:
            return self.reply(429, "come back later", {"Retry-After": "3600"})
        if "limit-until" in words:
            return self.reply(429, "come back later", {"Retry-After": formatdate(time.time() + 3600, usegmt=True)})
        if "early-once" in words and first:
            return self.reply(425, "too early")
        if ("broken-once" in words and first) or "broken-always" in words:
            return self.reply(500, "internal error")
        if ("hang-up-once" in words and first) or "hang-up-always" in words:
            self.connection.close()
            return None
        if "slow-once" in words and first:
            time.sleep(1.5)
        if "garbage-always" in words:
            return self.reply(200, "<html>a proxy's page</html>")
        content = translated(words)
        if "drop-marker" in words:
            content = re.sub(r"\[\[\d+\]\]", "", content)
        if "join-lines" in words:
            content = re.sub(r"\s*\n\s*", " ", content)
        if "empty-answer" in words:
            content = ""
        if "think-first" in words:
            content = f"<think>Hm, what is that in the other language?</think>\n\n{content}"
        if "think-opened" in words:  # the template has written the tag that opens it
            content = f"Hm, what is that?\nIn the other language?\n</think>\n\n{content}"
        cut = "cut-off" in words
        tokens = {"prompt_tokens": len(words.split()), "completion_tokens": len(content.split())}
        with self.state.lock:
            self.state.prompt_tokens += tokens["prompt_tokens"]
            self.state.completion_tokens += tokens["completion_tokens"]
        choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "length" if cut else "stop"}
        return self.reply(200, json.dumps({"choices": [choice], "usage": tokens}))

    def reply(self, status: int, body: str, headers: dict[str, str] | None = None) -> None:
        data = body.encode()
        if self.command == "POST":
            self.done()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


class Server:
    """The server as a process; `with Server(...) as server: server.url`."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments

    def __enter__(self) -> Server:
        self.process = subprocess.Popen([sys.executable, __file__, *self.arguments], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def stats(self) -> dict:
        """What the server has seen: `asked` by text, `times`, `requests`, `most_under_way`, the tokens it billed."""
        with urllib.request.urlopen(self.url) as response:
            return json.load(response)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before every answer")
    parser.add_argument("--key", default="", help="the only key that is accepted")
    Handler.state = State(parser.parse_args())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
