"""From a record, in any of the layouts people publish, to a row.

Layouts: `prompt` / `response`; Alpaca's `instruction` + `input` / `output`; TRL's `prompt` / `completion` (text or
messages); `messages`; ShareGPT's `conversations`. They are told apart by column names, or by the recipe where the
names differ. In each the reference stands beside the prompt, its column named after the reference language
(`prompt_en`, `instruction_en`, `messages_en`).

The one rule that must not break: the reference never holds the response. A last assistant turn is cut off the
reference, and `leak` looks for the response in what is left.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from cctuning.data.rows import BadRow, Message, Row, Text
from cctuning.errors import UserError, nearest
from cctuning.languages import canonical, is_code, same, unknown

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
LONG = 12  # characters from which a response that stands in the reference by chance is not to be expected
DIGITS = {place: str(unicodedata.digit(chr(place))) for place in range(sys.maxunicode) if chr(place).isdecimal()}


@dataclass(frozen=True)
class Layout:
    """Which column of a file plays which part, None where none does; the parts are a recipe's `columns`."""

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

    @classmethod
    def recognise(cls, found: Sequence[str], columns: Mapping[str, str], language: str) -> Layout:
        """Tell the layout from the columns found; what `columns` maps is taken as it says.

        Args:
            found: the file's column names, or a record's.
            columns: part to column name, as in a recipe.
            language: the reference language, which names the reference's columns.

        Raises:
            BadRow: two columns could play the same part.
        """
        parts: dict[str, str | None] = dict(columns)

        def choose(part: str, *names: str) -> None:
            here = [name for name in names if name in found]
            if part in columns or not here:
                return
            if len(here) > 1:
                reason = f"{' and '.join(here)} could each be it; say which in the recipe, columns: {{{part}: ...}}."
                raise BadRow(part, reason)
            parts[part] = here[0]

        if "prompt" not in columns:
            choose("messages", "messages", "conversations")
        if "messages" not in columns:
            choose("prompt", "prompt", "instruction")
        if parts.get("messages") and parts.get("prompt"):
            reason = f"{parts['prompt']} and {parts['messages']} could each be it; map one of them under columns."
            raise BadRow("prompt", reason)
        choose("response", "response", "completion", "output")
        if "reference" not in columns:
            choose("reference_messages", *_beside(found, language, "messages", "conversations"))
        if "reference_messages" not in columns:
            choose("reference", *_beside(found, language, "prompt", "instruction"))
        choose("reference_response", *_beside(found, language, "response", "completion", "output"))
        choose("lang", "lang")
        if parts.get("prompt") == "instruction":
            choose("input", "input")
        if str(parts.get("reference")).startswith("instruction_") and "reference" not in columns:
            choose("reference_input", *_beside(found, language, "input"))
        return cls(**parts)

    def used(self) -> dict[str, str]:
        """The parts that a column plays, with its name."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {part: name for part, name in values.items() if name is not None}


def _beside(found: Sequence[str], language: str, *stems: str) -> list[str]:
    """The columns named after a stem and the reference language, however that is written: `prompt_eng_Latn`."""
    exact = [f"{stem}_{language}" for stem in stems]
    if any(name in found for name in exact):
        return exact
    split = [(name, name.removeprefix(f"{stem}_")) for stem in stems for name in found if name.startswith(f"{stem}_")]
    return [name for name, code in split if is_code(code) and same(code, language)]


PARTS = tuple(part.name for part in fields(Layout))


def parse(
    record: Mapping[str, Any], layout: Layout, origin: str, *, found: Sequence[str], lang: str | None, language: str
) -> Row:
    """Turn a record into a row and check everything but whether it needs a reference.

    Args:
        record: column names to values.
        layout: which column plays which part.
        origin: where the record stands.
        found: all of the file's columns, for messages; the record may hold those in use alone.
        lang: the language of a record that names none.
        language: the reference language. A row in it is its own parallel and has no reference.

    Raises:
        BadRow: a field is missing, empty, of the wrong type, or the reference holds the response.
    """
    prompt: Text
    response: str | None
    if layout.messages is not None:
        prompt_field = response_field = layout.messages
        messages = _messages(_required(record, layout.messages, "messages", found), layout.messages)
        prompt, response = _split(messages)
        if not prompt:
            raise BadRow(layout.messages, "there is no turn before the assistant's; give the prompt as well.")
    else:
        prompt_field, response_field = layout.prompt or "prompt", layout.response or "response"
        prompt = _join(_required(record, prompt_field, "prompt", found), record, layout.input, prompt_field)
        response = _response(record.get(response_field), response_field)
        if isinstance(prompt, list) and prompt and prompt[-1]["role"] == "assistant":
            raise BadRow(prompt_field, "ends with an assistant turn; put that turn in the response.")
    _filled(prompt, prompt_field)
    named = record.get(layout.lang) if layout.lang else None
    row_lang = _text(lang if named is None or named == "" else named, layout.lang or "lang").strip()
    if not row_lang:
        raise BadRow(layout.lang or "lang", "no language; fill the column, or give the source a lang: in the recipe.")
    if not is_code(row_lang):
        raise BadRow(layout.lang or "lang", unknown(row_lang))
    row_lang = language if same(row_lang, language) else canonical(row_lang)
    reference, reference_response = _reference(record, layout, language) if row_lang != language else (None, None)
    if reference is not None and response is not None:
        how = leak(prompt, response, reference)
        if how:
            raise BadRow(layout.reference_messages or layout.reference or "reference", how)
    if layout.id is not None:
        origin = f"{origin} (id {record.get(layout.id)})"
    return Row(prompt, response, row_lang, reference, reference_response, origin)


def unused_parallel(record: Mapping[str, Any], layout: Layout, row: Row, language: str) -> bool:
    """Whether a row in the reference language has a parallel, which is not used, that says something else."""
    if row.lang != language:
        return False
    reference, _ = _reference(record, layout, language)
    return reference is not None and normal(reference) != normal(row.prompt)


def missing_reference(layout: Layout, found: Sequence[str], language: str) -> BadRow:
    """What to say of a row that needs a reference and has none."""
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
            field, f"no such column among {', '.join(found)}.{nearest(field, found)} Map it: columns: {part}."
        )
    if record[field] is None:
        raise BadRow(field, f"no value; a row needs its {part}.")
    return record[field]


def _text(value: Any, field: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(field, f"expected text, found {type(value).__name__} ({str(value)[:40]}); write it as text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        byte = ord(value[error.start])  # the reader leaves a byte that is no UTF-8 as U+DC80 and above
        what = f"byte 0x{byte - 0xDC00:02x}" if 0xDC80 <= byte <= 0xDCFF else f"half a surrogate pair (U+{byte:04X})"
        raise BadRow(field, f"{what} at character {error.start + 1} is not UTF-8; re-encode the file.") from None
    return value


def _response(value: Any, field: str) -> str | None:
    """Text, a whole number (an answer to a sum), or a list of one assistant message; None for empty."""
    if isinstance(value, list):
        messages = _messages(value, field)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise BadRow(field, "expected one assistant message; put earlier turns in the prompt.")
        value = messages[0]["content"]
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    text = _text(value, field)
    return text if text.strip() else None


def _join(value: Any, record: Mapping[str, Any], input_field: str | None, field: str) -> Text:
    if isinstance(value, list):
        return _messages(value, field)
    text = _text(value, field)
    extra = _text(record.get(input_field), input_field).strip() if input_field else ""
    return f"{text}\n\n{extra}" if extra else text


def _messages(value: Any, field: str) -> list[Message]:
    """Role and content, from either spelling of a conversation."""
    if not isinstance(value, list) or not value:
        raise BadRow(field, f"expected a list of messages, found {type(value).__name__}.")
    messages = []
    for turn, message in enumerate(value):
        place = f"{field}[{turn}]"
        if not isinstance(message, Mapping):
            raise BadRow(place, f"expected a message with role and content, found {type(message).__name__}.")
        if message.get("role") is not None:
            role, content = message["role"], message.get("content")
            known = role in ROLES
        else:
            role, content = message.get("from"), message.get("value")
            known, role = role in SHAREGPT, SHAREGPT.get(str(role), str(role))
        if not known:
            raise BadRow(place, f"role {role!r} is not known; expected {', '.join(ROLES)} (or human, gpt).")
        if message.get("tool_calls"):
            raise BadRow(place, "tool calls are not supported; write the call into the content.")
        if isinstance(content, list):  # content in parts
            if not all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
                raise BadRow(place, "only parts of type text are supported; leave the others out.")
            content = "".join(_text(part.get("text"), place) for part in content)
        messages.append({"role": str(role), "content": _text(content, place)})
    return messages


def _split(messages: list[Message]) -> tuple[list[Message], str | None]:
    if messages[-1]["role"] != "assistant":
        return messages, None
    return messages[:-1], messages[-1]["content"] if messages[-1]["content"].strip() else None


def _filled(prompt: Text, field: str) -> None:
    if not (prompt if isinstance(prompt, str) else prompt[-1]["content"]).strip():
        raise BadRow(field, "the prompt is empty.")


def _reference(record: Mapping[str, Any], layout: Layout, language: str) -> tuple[Text | None, str | None]:
    """The reference without any assistant turn at its end, and the response in the reference language."""
    field = layout.reference_messages or layout.reference
    value = record.get(field) if field else None
    if field is None or value is None or value == "":
        return None, None
    answer_field = layout.reference_response or f"response_{language}"
    answer = _response(record.get(answer_field), answer_field)
    reference = _join(value, record, layout.reference_input, field)
    if isinstance(reference, list):
        while reference and reference[-1]["role"] == "assistant":
            reference, said = _split(reference)
            answer = answer or said
        if not reference:
            raise BadRow(field, "holds assistant turns alone; give the parallel of the prompt.")
    _filled(reference, field)
    return reference, answer


def normal(text: Text) -> str:
    """A text without differences of case, spacing, width and forms of digits; of messages, all contents."""
    joined = text if isinstance(text, str) else "\n".join(message["content"] for message in text)
    return " ".join(unicodedata.normalize("NFKC", joined).translate(DIGITS).casefold().split())


def leak(prompt: Text, response: str, reference: Text) -> str | None:
    """How the reference gives the response away, or None.

    Two signs, on texts without case, spacing and forms of digits: a response of `LONG` characters or more stands in
    the reference and not in the prompt; or the reference ends with it as a word of its own, and the prompt does not
    have it (after a mark such as `:`, `#` or `?`: does not end with it). A short response inside the reference says
    nothing: the answer to a sum may be among its terms.
    """
    answer, asked, given = normal(response), normal(prompt), normal(reference)
    advice = "The model would read the answer and not learn it; give the parallel of the prompt alone."
    if len(answer) >= LONG and answer in given and answer not in asked:
        return f"the response stands in it ({answer[:40]!r}). {advice}"
    answer, asked, given = (re.sub(r"[\W_]+$", "", text) for text in (answer, asked, given))
    if answer and given.endswith(answer):
        before = given[: -len(answer)]
        word = not before[-1:].isalnum()
        marked = before.rstrip().endswith((":", "#", "=", ">", "?"))
        if word and (answer not in asked or (marked and not asked.endswith(answer))):
            return f"it ends with the response ({answer[:40]!r}). {advice}"
    return None


def check_columns(found: Sequence[str], columns: Mapping[str, str], where: str) -> None:
    """Raise `UserError` where a recipe maps a column that the file does not have."""
    for part, name in columns.items():
        if name not in found:
            hint = nearest(name, list(found))
            raise UserError(f"{where}: columns: {part}: no column {name!r} among {', '.join(found)}.{hint}")
