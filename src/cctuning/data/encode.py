"""Encode rows as token ids: prompt, response and reference prompt.

Prompt and reference are tokenised separately, exactly as at inference, and each has its own length limit. A reference
is never truncated, because the row connects to its last token. The response starts after the tokens of the prompt
alone; no token id is searched for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from cctuning.data.chat import (
    PLACEHOLDER,
    Rendered,
    Settled,
    aligned_span,
    answer_message,
    assistant_spans,
    closes,
    common,
    render,
    settle,
    special_tokens,
    split_thinking,
)
from cctuning.data.messages import THINKING, plain
from cctuning.data.schema import Text, as_messages
from cctuning.errors import UserError


@dataclass
class Encoder:
    """Encodes rows with one tokenizer.

    Attributes:
        tokenizer: of the model.
        max_length: most tokens of prompt and response together; the end of the response is cut. None: no limit.
        max_reference_length: most tokens of a reference; a longer one is an error. None: no limit.
        chat: render with the chat template; a plain prompt becomes one user message.
        chat_template: Jinja template to use instead of the tokenizer's own.
        eos: end each response with the eos token, unless the template ends it with a token of its own.
        chat_template_kwargs: arguments of the template, for example `enable_thinking`.
        thinking: responses contain thinking; None: no, unless the template or its arguments say so.
        turns: `all`: earlier assistant turns have a loss too, except those with `train: false`; `last`: they have not.
        align_turns: `all`: a conversation is aligned without its system messages; `last`: what follows the last
            assistant turn.
        opening: (set) special tokens that the tokenizer puts before plain text.
        closing: (set) text that the template writes after a response.
        settled: (set) the template as it is rendered (`chat.settle`); None without chat.
        frame: (set) numbers of tokens that the template writes before and after a prompt's own text.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = None
    max_reference_length: int | None = None
    chat: bool = False
    chat_template: str | None = None
    eos: bool = True
    chat_template_kwargs: Mapping[str, Any] | None = None
    thinking: bool | None = None
    turns: str = "all"
    align_turns: str = "all"
    opening: list[int] = field(init=False, default_factory=list)
    closing: str = field(init=False, default="")
    settled: Settled | None = field(init=False, default=None)
    frame: tuple[int, int] = field(init=False, default=(0, 0))
    _places: dict[str, bool] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        name = f"tokenizer {self.tokenizer.name_or_path!r}"
        if self.chat:
            if self.chat_template is None and self.tokenizer.chat_template is None:
                raise UserError(
                    f"{name} has no chat template; set chat_template_path to a Jinja file or to a tokenizer that has "
                    "one, or set chat: false."
                )
            try:
                self.settled = settle(self.tokenizer, self.chat_template, self.chat_template_kwargs, self.thinking)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
            self.chat_template, self.closing = self.settled.template, self.settled.closing
            self.frame = self._find_frame()
        else:
            self.opening = self._find_opening()
            self.frame = len(self.opening), 0
        if self._appends_eos and self.tokenizer.eos_token_id is None:
            raise UserError(
                f"{name} has no eos token, so a model trained with it would never stop; set the recipe's eos_token."
            )

    @property
    def _appends_eos(self) -> bool:
        return self.eos and not self.closing.strip()

    @property
    def thinks(self) -> bool:
        """Whether prompts leave it to the model to think before it answers."""
        return self.settled is not None and self.settled.thinks

    def _find_opening(self) -> list[int]:
        for probe in ("a", "0", "."):
            bare, whole = self._ids([probe])[0], list(self.tokenizer(probe)["input_ids"])
            for start in range(len(whole) - len(bare) + 1 if bare else 0):
                if whole[start : start + len(bare)] == bare:
                    return whole[:start]
        return []

    def _find_frame(self) -> tuple[int, int]:
        """Numbers of tokens that two different prompts share at their start and at their end."""
        try:
            one, other = self._ids([self.render("a word"), self.render("0.")])
        except UserError:  # a template that requires other turns
            return 0, 0
        return common(one, other), common(one[::-1], other[::-1])

    def _text(self, prompt: list[int], aligned: tuple[int, int] | None) -> list[int]:
        """First position of the prompt's own text, without the template's, and the one after its last.

        `aligned` has them for a conversation, where they depend on its turns.
        """
        start, end = aligned or (self.frame[0], len(prompt) - self.frame[1])
        return [start, end] if start < end else [0, len(prompt)]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, with only the special tokens that are in the text; one call for all."""
        if not texts:
            return []
        return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    def render(self, prompt: Text, row: Mapping[str, Any] | None = None) -> str:
        """The text of a prompt up to the start of its answer; its `row` may have tools and template arguments."""
        if self.chat:
            return self._apply(_messages(prompt), row, prompt=True)
        if not isinstance(prompt, str):
            raise UserError("the prompt is messages and chat is off; set chat: true, or give text.")
        return prompt

    def _apply(self, messages: list[dict[str, Any]], row: Mapping[str, Any] | None, prompt: bool) -> str:
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

    def prompt_ids(self, prompt: Text, row: Mapping[str, Any] | None = None) -> list[int]:
        """Token ids of a prompt or a reference, the same in training and inference."""
        return self._opened(self._ids([self.render(prompt, row)])[0])

    def _opened(self, ids: list[int]) -> list[int]:
        # A text may begin with a bos of its own: not twice.
        return ids if self.opening and ids[: len(self.opening)] == self.opening else self.opening + ids

    def _rest(self, row: Mapping[str, Any], text: str) -> str:
        """The text after the rendered prompt `text`: the response, and what the template writes after it."""
        response = str(row["response"])
        if not self.chat:
            return response
        thinking, content = (row["thinking"], response) if row.get("thinking") else split_thinking(response)
        answer = answer_message(content, thinking)
        if row.get("calls"):
            answer["tool_calls"] = _loaded(row["calls"])
        whole = self._apply([*_messages(row["prompt"]), answer], row, prompt=False)
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
        left_out = [part for part in self._parts(row) if not self._has_place(part, row)]
        if left_out:
            return f"the chat template leaves out their {' and '.join(left_out)}"
        parts = (row["prompt"], row.get("response"), row.get("reference"))
        texts = ("\n".join(turn["content"] or "" for turn in _messages(part)) for part in parts if part)
        token = next((found[0] for text in texts if (found := self._special.search(text))), None)
        return None if token is None else f"{token!r}, written in their text, is read as that special token"

    def _parts(self, row: Mapping[str, Any]) -> list[str]:
        """What a row has beside the contents of user and assistant, for which a template may have no place."""
        prompt = row["prompt"] if isinstance(row["prompt"], list) else []
        roles = [f"{role} messages" for role in ("system", "developer", "tool") if role in {m["role"] for m in prompt}]
        calls = ["tool calls"] if any(message.get("tool_calls") for message in prompt) else []
        return roles + calls + [part for part in ("tools", "thinking") if row.get(part)]

    def _has_place(self, part: str, row: Mapping[str, Any]) -> bool:
        """Whether a part of a row is in its rendering; the first row with such a part decides for all."""
        if part not in self._places:
            self._places[part] = self.chat and self._shows(part, row)
        return self._places[part]

    def _shows(self, part: str, row: Mapping[str, Any]) -> bool:
        named = {"type": "function", "function": {"name": PLACEHOLDER, "description": "", "parameters": {}}}
        messages, call = _messages(row["prompt"]), {**named, "function": {"name": PLACEHOLDER, "arguments": {}}}
        for message in messages:
            if part == f"{message['role']} messages":
                message["content"] = PLACEHOLDER
            if part == "tool calls" and message.get("tool_calls"):
                message["tool_calls"] = [{**one, **call} for one in message["tool_calls"]]
        try:
            if part == "thinking":
                return row["thinking"].strip() in self._rest(row, self.render(row["prompt"], row))
            return PLACEHOLDER in self._apply(messages, {**row, "tools": [named]} if part == "tools" else row, True)
        except UserError:  # the template requires other values
            return True

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return special_tokens(self.tokenizer)

    def encode_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Token ids of one row.

        Args:
            row: `prompt`, and optionally `response`, `reference`, `lang`, `row`, `origin` and the other columns of
                `cctuning.data.schema`.

        Returns:
            `input_ids`; `labels`, -100 except for the response and earlier turns of the assistant, and everywhere
            where there is no response; `reference_input_ids`, empty where there is no reference; `text` and
            `reference_text`, the first position of the side's own text and the one after its last, without what the
            template adds; `row`; `lang`.
        """
        encoded = self.encode([row])[0]
        if isinstance(encoded, UserError):
            raise encoded
        return encoded

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | UserError]:
        """Each row as `encode_row` returns it, or the `UserError` that says why it cannot be used."""
        texts: list[str] = []
        slots: list[UserError | tuple[str, int]] = []  # of a good row: its response text, and the index of its texts
        for row in rows:
            try:
                prompt = self.render(row["prompt"], row)
                rest = self._rest(row, prompt) if row.get("response") is not None else ""
                reference = self.render(row["reference"], row) if row.get("reference") is not None else ""
            except UserError as error:
                slots.append(at(row, "prompt", str(error)))
            else:
                slots.append((rest, len(texts)))
                texts += [prompt, prompt + rest, reference]
        ids = self._ids(texts)
        result: list[dict[str, Any] | UserError] = []
        for row, slot in zip(rows, slots, strict=True):
            try:
                if isinstance(slot, UserError):
                    raise slot
                rest, place = slot
                own, both, other = ids[place : place + 3]
                earlier = self._turns(row, texts[place])
                aligned = self._aligned(row, "prompt", texts[place]), self._aligned(row, "reference", texts[place + 2])
                result.append(self._assemble(row, rest, own, both, other, earlier, aligned))
            except UserError as error:
                result.append(error)
        return result

    def _turns(self, row: Mapping[str, Any], text: str) -> list[tuple[int, int]]:
        """The token spans of earlier assistant turns that have a loss, in the rendered prompt `text`."""
        prompt = row["prompt"]
        if self.turns != "all" or not self.chat or isinstance(prompt, str) or row.get("response") is None:
            return []
        return self._positions(assistant_spans(prompt, text, self._renderer(row)), text)

    def _aligned(self, row: Mapping[str, Any], part: str, text: str) -> tuple[int, int] | None:
        """The token span that is aligned in the rendered `part`; None where `frame` has it or it is not found."""
        if not self.chat or row.get(part) is None:
            return None
        messages = _messages(row[part])
        if [turn["role"] for turn in messages] == ["user"] and not row.get("tools") and not row.get("arguments"):
            return None
        try:
            found = aligned_span(messages, text, self._renderer(row), self.align_turns)
        except UserError:  # the template reads the contents of messages
            return None
        return self._positions([found], text)[0] if found else None

    def _renderer(self, row: Mapping[str, Any]) -> Rendered:
        return lambda messages, prompt=True: self._apply(_messages(messages), row, prompt)

    def _positions(self, spans: Sequence[tuple[int, int]], text: str) -> list[tuple[int, int]]:
        """Spans of characters as spans of tokens."""
        counts = [len(ids) for ids in self._ids([text[:place] for span in spans for place in span])]
        return list(zip(counts[::2], counts[1::2], strict=True))

    def _assemble(
        self,
        row: Mapping[str, Any],
        rest: str,
        bare: list[int],
        whole: list[int],
        reference: list[int],
        earlier: Sequence[tuple[int, int]],
        aligned: tuple[tuple[int, int] | None, tuple[int, int] | None],
    ) -> dict[str, Any]:
        if not bare:
            raise at(row, "prompt", "the tokenizer makes no tokens of it; correct the row.")
        prompt, response = self._opened(bare), []
        if row.get("response") is not None:
            # Where tokens merge across the border, prompt and response are tokenised separately, so that the prompt
            # has the tokens of inference. An unknown token may absorb what follows it.
            merged = whole[: len(bare)] != bare or len(whole) == len(bare) or bare[-1] == self.tokenizer.unk_token_id
            response = self._ids([rest])[0] if merged else whole[len(bare) :]
            if not response:
                raise at(row, "response", "the tokenizer makes no tokens of it; correct the row.")
            if self._appends_eos and response[-1] != self.tokenizer.eos_token_id:
                response.append(self.tokenizer.eos_token_id)
        limit, advice = self.max_length, "raise max_length or shorten the prompt."
        if limit is not None and response and len(prompt) >= limit:
            lengths = f"the prompt has {len(prompt)} tokens, the response {len(response)}, and max_length is {limit}"
            raise at(row, "response", f"no tokens of it would be left: {lengths}; {advice}")
        if limit is not None and len(prompt) > limit:
            why = "the row connects at its last token, so it is never cut"
            raise at(row, "prompt", f"{len(prompt)} tokens, and max_length is {limit}; {why}: {advice}")
        if row.get("reference") is not None:
            if not reference:
                raise at(row, "reference", "the tokenizer makes no tokens of it; correct the row.")
            reference, most = self._opened(reference), self.max_reference_length
            if most is not None and len(reference) > most:
                why = (
                    "the row connects to its last token, so it is never cut: raise max_reference_length or shorten it."
                )
                raise at(row, "reference", f"{len(reference)} tokens, and max_reference_length is {most}; {why}")
        labels = [-100] * len(prompt)
        for start, end in earlier:
            start, end = (place + len(prompt) - len(bare) for place in (start, end))
            labels[start:end] = prompt[start:end]
        return {
            "input_ids": (prompt + response)[:limit],
            "labels": (labels + response)[:limit],
            "reference_input_ids": reference,
            "text": self._text(prompt, aligned[0]),
            "reference_text": self._text(reference, aligned[1]) if reference else [],
            "row": row.get("row", -1),
            "lang": row.get("lang") or "",
        }


def _messages(prompt: Text) -> list[dict[str, Any]]:
    """Messages as templates read them: thinking under every key that a template may read, and without `train`."""
    found = []
    for message in map(plain, as_messages(prompt)):
        thinking = message.pop("thinking", None)
        message.pop("train", None)
        found.append(message | (dict.fromkeys(THINKING, thinking) if thinking else {}))
    return found


def _as_json(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
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


def at(row: Mapping[str, Any], part: str, reason: str) -> UserError:
    return UserError(f"{origin_of(row)}: {part}: {reason}")


def origin_of(row: Mapping[str, Any]) -> str:
    return str(row.get("origin") or f"row {row.get('row', '?')}")
