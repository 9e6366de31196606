"""Render rows with a settled chat template, and find the turns that are learned or aligned in the text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from cctuning.data.chat import Settled, answer_message, closes, render, settle, split_thinking
from cctuning.data.messages import THINKING, plain
from cctuning.data.schema import Message, Text, as_messages
from cctuning.errors import UserError

PLACEHOLDER = "\ue000CCTUNING\ue001"  # in no text: it begins and ends with private-use characters
END = re.compile(r"\s*<[^<>\s]{1,40}>")  # the token that ends a turn, which the model has to learn
Span = tuple[int, int]  # first and last + 1 character


@dataclass
class Renderer:
    """Renders the prompts and answers of rows.

    Attributes:
        tokenizer: of the model.
        chat: render with the chat template; a plain prompt becomes one user message.
        chat_template: Jinja template to use instead of the tokenizer's own.
        chat_template_kwargs: arguments of the template, for example `enable_thinking`.
        thinking: responses contain thinking; None: no, unless the template or its arguments say so.
        turns: `all`: earlier assistant turns have a loss too, except those with `train: false`; `last`: they have not.
        align_turns: `all`: a conversation is aligned without its system messages; `last`: what follows the last
            assistant turn.
        closing: (set) text that the template writes after a response.
        settled: (set) the template as it is rendered (`chat.settle`); None without chat.
    """

    tokenizer: PreTrainedTokenizerBase
    chat: bool = False
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    thinking: bool | None = None
    turns: str = "all"
    align_turns: str = "all"
    closing: str = field(init=False, default="")
    settled: Settled | None = field(init=False, default=None)
    _places: dict[str, bool] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.chat:
            return
        name = f"tokenizer {self.tokenizer.name_or_path!r}"
        if self.chat_template is None and self.tokenizer.chat_template is None:
            raise UserError(
                f"{name} has no chat template; set chat_template_path to a Jinja file or to a tokenizer that has one, "
                "or set chat: false."
            )
        try:
            self.settled = settle(self.tokenizer, self.chat_template, self.chat_template_kwargs, self.thinking)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        self.chat_template, self.closing = self.settled.template, self.settled.closing

    @property
    def thinks(self) -> bool:
        """Whether prompts leave it to the model to think before it answers."""
        return self.settled is not None and self.settled.thinks

    def render(self, prompt: Text, row: Mapping[str, Any] | None = None) -> str:
        """The text of a prompt up to the start of its answer; its `row` may have tools and template arguments."""
        if self.chat:
            return self._apply(as_rendered(prompt), row, prompt=True)
        if not isinstance(prompt, str):
            raise UserError("the prompt is messages and chat is off; set chat: true, or give text.")
        return prompt

    def _apply(self, messages: list[Message], row: Mapping[str, Any] | None, prompt: bool) -> str:
        tools, arguments = (_loaded((row or {}).get(name)) for name in ("tools", "arguments"))
        try:
            return render(self.tokenizer, messages, self.chat_template, prompt, arguments, tools)
        except UserError:
            if not any(message.get("tool_calls") for message in messages):
                raise
            try:  # DeepSeek's templates take the arguments of calls as JSON text
                return render(self.tokenizer, _as_json(messages), self.chat_template, prompt, arguments, tools)
            except UserError:
                pass
            raise

    def answer(self, row: Mapping[str, Any], text: str) -> str:
        """The text after the rendered prompt `text`: the response, and what the template writes after it."""
        response = str(row["response"])
        if not self.chat:
            return response
        thinking, content = (row["thinking"], response) if row.get("thinking") else split_thinking(response)
        answer = answer_message(content, thinking)
        if row.get("calls"):
            answer["tool_calls"] = _loaded(row["calls"])
        whole = self._apply([*as_rendered(row["prompt"]), answer], row, prompt=False)
        rest = whole[len(text) :] if whole.startswith(text) else None
        if any(call["function"]["name"] not in (rest or whole) for call in answer.get("tool_calls", ())):
            raise UserError("the chat template leaves out tool calls; give another with chat_template_path.")
        if rest is not None and (thinking is None or thinking.strip() in rest):
            return rest
        # The template renders the prompt differently once it is answered (without its thinking, for example). The
        # model will be asked with the prompt alone, so that rendering is kept, and an open thinking block is closed.
        if row.get("calls"):
            hint = "; with chat_template_kwargs: {enable_thinking: true} the model itself begins its turns"
            raise UserError(
                "the chat template renders this prompt differently once its tool calls are answered"
                + (hint if self.settled and self.settled.before and "</" not in self.settled.before else "")
                + "."
            )
        opened = closes(text)
        if opened:
            thought = "" if thinking is None else thinking.strip("\n")
            return f"{thought}{opened}{content}{self.closing}"
        return (content if row.get("thinking") else response) + self.closing

    def warning(self, row: Mapping[str, Any]) -> str | None:
        """What the user should know about a row that is used all the same."""
        prompt = row["prompt"] if isinstance(row["prompt"], list) else []
        parts = [f"{role} messages" for role in ("system", "developer", "tool") if role in {m["role"] for m in prompt}]
        parts += ["tool calls"] if any(message.get("tool_calls") for message in prompt) else []
        parts += [part for part in ("tools", "thinking") if row.get(part)]
        for part in parts:
            if part not in self._places:  # the first row with such a part decides for all
                self._places[part] = self.chat and self._shows(part, row)
        if left_out := [part for part in parts if not self._places[part]]:
            return f"the chat template leaves out their {' and '.join(left_out)}"
        sides = (row["prompt"], row.get("response"), row.get("reference"))
        texts = ("\n".join(turn["content"] or "" for turn in as_rendered(side)) for side in sides if side)
        token = next((found[0] for text in texts if (found := self._special.search(text))), None)
        return None if token is None else f"{token!r}, written in their text, is read as that special token"

    def _shows(self, part: str, row: Mapping[str, Any]) -> bool:
        """Whether the template renders a part of a row."""
        named = {"type": "function", "function": {"name": PLACEHOLDER, "description": "", "parameters": {}}}
        messages, call = as_rendered(row["prompt"]), {**named, "function": {"name": PLACEHOLDER, "arguments": {}}}
        for message in messages:
            if part == f"{message['role']} messages":
                message["content"] = PLACEHOLDER
            if part == "tool calls" and message.get("tool_calls"):
                message["tool_calls"] = [{**one, **call} for one in message["tool_calls"]]
        try:
            if part == "thinking":
                return row["thinking"].strip() in self.answer(row, self.render(row["prompt"], row))
            return PLACEHOLDER in self._apply(messages, {**row, "tools": [named]} if part == "tools" else row, True)
        except UserError:  # the template requires other values
            return True

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """Matches special tokens in a text, except a bos at its start."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        named = {*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        tokens = sorted({str(token) for token in named if str(token).strip()})
        opening = rf"(?!\A{re.escape(self.tokenizer.bos_token)})" if self.tokenizer.bos_token else ""
        return re.compile(opening + f"(?:{'|'.join(map(re.escape, tokens))})" if tokens else r"(?!)")

    def learned(self, row: Mapping[str, Any], text: str) -> list[Span]:
        """Where the earlier assistant turns with a loss are in the rendered prompt `text`.

        TRL's `assistant_only_loss` needs templates with `{% generation %}` marks; this works with any template.
        """
        prompt = row["prompt"]
        if self.turns != "all" or not self.chat or isinstance(prompt, str) or row.get("response") is None:
            return []
        places = []
        for turn, message in enumerate(prompt):
            if message["role"] != "assistant" or message.get("train") is False:
                continue
            try:
                found = self._turn_span(row, prompt, turn, {"role": "assistant"}, text)
            except UserError:  # what follows a tool call may require it: the turn is what its own rendering adds
                parts = (prompt[:turn], True), (prompt[: turn + 1], False)
                start, end = (common(text, self._apply(as_rendered(part), row, opened)) for part, opened in parts)
                places.append((start, end))
                continue
            if found is not None:
                closing = END.match(text, found[1])
                places.append((found[0], closing.end() if closing else found[1]))
        return places

    def aligned(self, row: Mapping[str, Any], part: str, text: str) -> Span | None:
        """Where the aligned part of a rendered `prompt` or `reference` is; None where it is not found, or where it is
        all between the template's own words before and after it."""
        if not self.chat or row.get(part) is None:
            return None
        messages = as_rendered(row[part])
        if [turn["role"] for turn in messages] == ["user"] and not row.get("tools") and not row.get("arguments"):
            return None
        own = [turn for turn, message in enumerate(messages) if message["role"] not in ("system", "developer")]
        if self.align_turns == "last":
            said = [turn for turn in own if messages[turn]["role"] == "assistant"]
            own = [turn for turn in own if not said or turn > said[-1]]
        own = own or [len(messages) - 1]
        try:
            first, last = (self._turn_span(row, messages, turn, messages[turn], text) for turn in (own[0], own[-1]))
        except UserError:  # the template reads the contents of messages
            return None
        return (first[0], last[1]) if first and last else None

    def _turn_span(
        self, row: Mapping[str, Any], prompt: list[Message], turn: int, other: Mapping[str, Any], text: str
    ) -> Span | None:
        """Where a turn is: where the rendering differs from one with `other`'s content replaced."""
        messages = [*prompt[:turn], {**other, "content": PLACEHOLDER}, *prompt[turn + 1 :]]
        changed = self._apply(as_rendered(messages), row, prompt=True)
        start = common(text, changed)
        end = len(text) - common(text[start:][::-1], changed[start:][::-1])
        return (start, end) if end > start and PLACEHOLDER in changed[start:] else None


def common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The length of the common prefix."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def as_rendered(prompt: Text) -> list[Message]:
    """Messages as templates read them: thinking under every key that a template may read, and without `train`."""
    found = []
    for message in map(plain, as_messages(prompt)):
        thinking = message.pop("thinking", None)
        message.pop("train", None)
        found.append(message | (dict.fromkeys(THINKING, thinking) if thinking else {}))
    return found


def _as_json(messages: list[Message]) -> list[Message]:
    """The messages with the arguments of tool calls as JSON text."""
    found = []
    for message in messages:
        calls = [
            {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
            for call in message.get("tool_calls") or ()
        ]
        found.append({**message, "tool_calls": calls} if calls else message)
    return found


def _loaded(value: Any) -> Any:
    """A value that tables hold as JSON."""
    return json.loads(value) if isinstance(value, str) else value
