"""Recognise the layout of a record by its columns, and find the parts of a row in it.

Layouts: `prompt` / `response`; Alpaca's `instruction` + `input` / `output`; TRL's `prompt` / `completion` (text or
messages); `messages`; ShareGPT's `conversations`. A recipe maps columns with other names. The reference is in a column
named after the reference language (`prompt_en`, `instruction_en`, `messages_en`).

The reference must never contain the response: assistant turns at its end are removed, and `RowReader` looks for the
response in the rest.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from cctuning.data.messages import THINKING, history_of, messages_of, text_of
from cctuning.data.schema import BadRow, Message, Text, as_messages
from cctuning.errors import UserError, nearest
from cctuning.languages import is_code, same


@dataclass(frozen=True)
class Layout:
    """Which column plays which part of a row, None where none does; parts are the keys of a recipe's `columns`."""

    prompt: str | None = None
    input: str | None = None
    response: str | None = None
    lang: str | None = None
    reference: str | None = None
    reference_input: str | None = None
    reference_response: str | None = None
    messages: str | None = None
    reference_messages: str | None = None
    id: str | None = None
    system: str | None = None
    history: str | None = None
    tools: str | None = None
    thinking: str | None = None
    arguments: str | None = None
    reference_system: str | None = None
    reference_history: str | None = None

    @classmethod
    def recognise(cls, found: Sequence[str], columns: Mapping[str, str], language: str) -> Layout:
        """Recognise the layout from column names; `columns` (part to column) overrides it. May raise `BadRow`."""
        parts: dict[str, str | None] = dict(columns)

        def choose(part: str, *names: str) -> None:
            here = [name for name in names if name in found]
            if part in columns or not here:
                return
            if len(here) > 1:
                reason = f"{' and '.join(here)} could both be it; choose one in the recipe, columns: {{{part}: ...}}."
                raise BadRow(part, reason)
            parts[part] = here[0]

        if "prompt" not in columns:
            choose("messages", "messages", "conversations")
        if "messages" not in columns:
            choose("prompt", "prompt", "instruction")
        if parts.get("messages") and parts.get("prompt"):
            reason = f"{parts['prompt']} and {parts['messages']} could both be it; map one of them under columns."
            raise BadRow("prompt", reason)
        choose("response", "response", "completion", "output")
        if "reference" not in columns:
            choose("reference_messages", *_beside(found, language, "messages", "conversations"))
        if "reference_messages" not in columns:
            choose("reference", *_beside(found, language, "prompt", "instruction"))
        choose("reference_response", *_beside(found, language, "response", "completion", "output"))
        choose("lang", "lang")
        for part in ("system", "history"):
            choose(part, part)
            choose(f"reference_{part}", *_beside(found, language, part))
        choose("tools", "tools")
        choose("arguments", "chat_template_kwargs")
        if not parts.get("messages"):
            choose("thinking", *THINKING)
        if parts.get("prompt") == "instruction":
            choose("input", "input")
        if str(parts.get("reference")).startswith("instruction_") and "reference" not in columns:
            choose("reference_input", *_beside(found, language, "input"))
        return cls(**parts)

    def used(self) -> dict[str, str]:
        """Each part with its column."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {part: name for part, name in values.items() if name is not None}


def _beside(found: Sequence[str], language: str, *stems: str) -> list[str]:
    """The columns named after a stem and the reference language in any spelling: `prompt_en`, `prompt_eng_Latn`."""
    exact = [f"{stem}_{language}" for stem in stems]
    if any(name in found for name in exact):
        return exact
    split = [(name, name.removeprefix(f"{stem}_")) for stem in stems for name in found if name.startswith(f"{stem}_")]
    return [name for name, code in split if is_code(code) and same(code, language)]


LANG_COLUMNS = ("lang", "language", "language_code", "lang_code", "locale")
AFTER = "turns after the last answer"  # counted with the keys that are not read
PARTS = tuple(part.name for part in fields(Layout))


def sides_of(
    record: Mapping[str, Any], layout: Layout, found: Sequence[str], unread: Counter[str], to_answer: bool = False
) -> tuple[Text, Message | None, str]:
    """The prompt with all its context, the answering message, and the column of the prompt.

    A conversation is read up to its last answer, unless it is to be answered (`to_answer`) and ends otherwise.
    """
    prompt: Text
    if layout.messages is not None:
        field = layout.messages
        messages = messages_of(_required(record, field, "messages", found), field, unread)
        if to_answer and messages[-1]["role"] != "assistant":
            prompt, response = messages, None
        else:
            prompt, response = _split(messages, unread)
        if not prompt:
            raise BadRow(field, "there is no turn before the assistant's; add the prompt.")
    else:
        field, answer = layout.prompt or "prompt", layout.response or "response"
        prompt = _join(_required(record, field, "prompt", found), record, layout.input, field)
        if isinstance(prompt, list):  # only the response has a loss, and turns that say so
            prompt = [{"train": False, **turn} if turn["role"] == "assistant" else turn for turn in prompt]
            if prompt[-1]["role"] == "assistant":
                raise BadRow(field, "ends with an assistant turn; put that turn in the response.")
        prompt, response = _answered(prompt, record.get(answer), answer, unread)
        if response is not None and layout.thinking is not None:
            thinking = text_of(record.get(layout.thinking), layout.thinking)
            response |= {"thinking": thinking} if thinking.strip() else {}
    return _in_context(prompt, record, layout.system, layout.history), response, field


def _answered(prompt: Text, value: Any, field: str, unread: Counter[str]) -> tuple[Text, Message | None]:
    """Prompt and answer where the answer has its own column: text, or messages, of which the last is the answer."""
    if not isinstance(value, list):
        text = _response(value, field)
        return prompt, None if text is None else {"role": "assistant", "content": text}
    messages = messages_of(value, field, unread)
    if messages[0]["role"] != "assistant":
        raise BadRow(field, "expected the assistant's turn first; put earlier ones in the prompt.")
    before, response = _split(messages, unread)
    return ([*as_messages(prompt), *before] if before else prompt), response


def _in_context(prompt: Text, record: Mapping[str, Any], system: str | None, history: str | None) -> Text:
    """The prompt after the system message and the history, which have columns of their own."""
    told = text_of(record.get(system), system) if system else ""
    turns = history_of(record.get(history), history) if history else []
    if not told.strip() and not turns:
        return prompt
    messages = as_messages(prompt)
    if told.strip() and messages[0]["role"] == "system":
        raise BadRow(str(system), "the conversation has a system message as well; leave one of them out.")
    return [*([{"role": "system", "content": told}] if told.strip() else []), *turns, *messages]


def arguments_of(value: Any, field: str) -> dict[str, Any]:
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, Mapping):
        raise BadRow(field, f"expected the chat template's arguments as a mapping, found {str(value)[:60]}.")
    return {name: held for name, held in found.items() if held is not None}


def missing_reference(layout: Layout, found: Sequence[str], language: str) -> BadRow:
    """The error for a row that needs a reference and has none."""
    field = layout.reference_messages or layout.reference
    if field is None:
        field = f"messages_{language}" if layout.messages else f"prompt_{language}"
    reason = f"no parallel of the prompt in the reference language ({language})"
    if field not in found:
        free = [name for name in found if name not in layout.used().values()]
        reason += f": no such column among {', '.join(found)}.{nearest(field, free)} Map it under columns: reference"
    return BadRow(field, reason + ".")


def _required(record: Mapping[str, Any], field: str, part: str, found: Sequence[str]) -> Any:
    if field not in record:
        raise BadRow(
            field,
            f"no such column among {', '.join(found)}.{nearest(field, found)} Map it: "
            f"'{{path: FILE, columns: {{{part}: NAME}}}}' in place of FILE"
            f"{', or messages for a conversation' if part == 'prompt' else ''}.",
        )
    if record[field] is None:
        raise BadRow(field, f"no value; a row needs its {part}.")
    return record[field]


def _response(value: Any, field: str) -> str | None:
    """Text, or a whole number as text; None for empty."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    text = text_of(value, field)
    return text if text.strip() else None


def _join(value: Any, record: Mapping[str, Any], input_field: str | None, field: str) -> Text:
    if isinstance(value, list):
        return messages_of(value, field)
    text = text_of(value, field)
    extra = text_of(record.get(input_field), input_field).strip() if input_field else ""
    return f"{text}\n\n{extra}" if extra else text


def _split(messages: list[Message], unread: Counter[str]) -> tuple[list[Message], Message | None]:
    """The turns before the last assistant turn with a loss, and that turn.

    What follows it is left out, and counted in `unread` unless it has no loss by the user's own `train: false`.
    Without such a turn: all but assistant turns at the end, and None.
    """
    said = [
        place
        for place, turn in enumerate(messages)
        if turn["role"] == "assistant"
        and turn.get("train", True)
        and (turn["content"].strip() or turn.get("tool_calls"))
    ]
    if said:
        last = said[-1]
        if last < len(messages) - 1 and messages[-1].get("train", True):
            unread[AFTER] += 1
        return messages[:last], messages[last]
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return messages, None


def check_filled(prompt: Text, field: str) -> None:
    if not (prompt if isinstance(prompt, str) else prompt[-1]["content"]).strip():
        raise BadRow(field, "the prompt is empty.")


def reference_of(
    record: Mapping[str, Any], layout: Layout, language: str, prompt: Text = ""
) -> tuple[Text | None, str | None]:
    """The reference without assistant turns at its end, and the response in the reference language.

    A conversation whose turns go on where those of `prompt` end is cut there.
    """
    field = layout.reference_messages or layout.reference
    value = record.get(field) if field else None
    if field is None or value is None or value == "":
        return None, None
    answer_field = layout.reference_response or f"response_{language}"
    _, said = _answered([], record.get(answer_field), answer_field, Counter())
    answer = said["content"] if said is not None and said["content"].strip() else None  # not of tool calls alone
    if layout.reference_messages:
        reference: Text = _turns_of(prompt, messages_of(value, field))
    else:
        reference = _join(value, record, layout.reference_input, field)
    if isinstance(reference, list):
        while reference and reference[-1]["role"] == "assistant":
            *reference, last = reference
            answer = answer or (last["content"] if last["content"].strip() else None)
        if not reference:
            raise BadRow(field, "has only assistant turns; give the parallel of the prompt.")
    check_filled(reference, field)
    return _in_context(reference, record, layout.reference_system, layout.reference_history), answer


def _turns_of(prompt: Text, messages: list[Message]) -> list[Message]:
    """`messages` up to the answer of a conversation's prompt; all of them where their turns are not the prompt's."""
    sides = ([] if isinstance(prompt, str) else prompt, messages)
    asked, given = ([one["role"] for one in side if one["role"] != "system"] for side in sides)
    end = len(asked) + len(messages) - len(given)
    if not asked or given[: len(asked)] != asked:
        return messages
    return messages[: end + (given[len(asked) : len(asked) + 1] == ["assistant"])]


def check_columns(found: Sequence[str], columns: Mapping[str, str], where: str) -> None:
    """Raise `UserError` where a recipe maps a column that the file does not have."""
    for part, name in columns.items():
        if name not in found:
            hint = nearest(name, list(found))
            raise UserError(f"{where}: columns: {part}: no column {name!r} among {', '.join(found)}.{hint}")
