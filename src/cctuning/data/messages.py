"""Read conversations in the formats they are published in.

A message has `role` and `content`, and where the data give them `thinking`, `tool_calls`, `name` and `tool_call_id`
(of tools), and `train` (False: no loss on this assistant turn). ShareGPT's `from` and `value` and its roles are read
too, with LLaMA-Factory's `function_call` and `observation`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from cctuning.data.schema import BadRow, Message

ROLES = ("system", "developer", "user", "assistant", "tool")
OTHER_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "function": "tool"}
OTHER_ROLES |= {"function_call": "assistant", "observation": "tool"}
THINKING = ("thinking", "reasoning_content", "reasoning")  # names of keys and columns
READ = {"role", "from", "content", "value", "tool_calls", "function_call", "name", "tool_call_id", "train", "weight"}
READ |= {*THINKING}
# Words in the names of columns that hold context of the prompt, or thinking.
CONTEXT: tuple[str, ...] = ("system", "developer", "history", "tool", "function", "context", "document", "passage")
CONTEXT += ("knowledge", "think", "reason", "rationale", "cot", "analysis", "image", "audio", "video", "chat_template")


def text_of(value: Any, field: str) -> str:
    """Text, empty for null; `BadRow` for another type, and for text that is not UTF-8."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(field, f"expected text, found {type(value).__name__} ({str(value)[:40]}); write it as text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        byte = ord(value[error.start])  # readers decode a byte that is not UTF-8 as U+DC80 and above
        what = f"byte 0x{byte - 0xDC00:02x}" if 0xDC80 <= byte <= 0xDCFF else f"half a surrogate pair (U+{byte:04X})"
        raise BadRow(field, f"{what} at character {error.start + 1} is not UTF-8; re-encode the file.") from None
    return value


def messages_of(value: Any, field: str, unread: Counter[str] | None = None) -> list[Message]:
    """The messages of a conversation in any format; `unread` counts non-empty keys that are not read."""
    if isinstance(value, str):  # as tables hold it
        value = _json(value, field)
    if not isinstance(value, list) or not value:
        raise BadRow(field, f"expected a list of messages, found {'none' if value == [] else type(value).__name__}.")
    messages = []
    for turn, message in enumerate(value):
        place = f"{field}[{turn}]"
        if not isinstance(message, Mapping):
            raise BadRow(place, f"expected a message with role and content, found {type(message).__name__}.")
        messages.append(_message(message, place))
        if unread is not None:
            for key, held in message.items():
                if key not in READ and held not in (None, "", [], {}):
                    unread[key] += 1
    return messages


def _message(message: Mapping[str, Any], place: str) -> Message:
    said, content = (
        next((message[key] for key in keys if message.get(key) is not None), None)
        for keys in (("role", "from"), ("content", "value"))
    )
    role = OTHER_ROLES.get(str(said), str(said))
    if role not in ROLES:
        raise BadRow(place, f"role {said!r} is not known; expected {', '.join((*ROLES, *OTHER_ROLES))}.")
    if not {"content", "value", "tool_calls", "function_call"} & message.keys():
        raise BadRow(place, f"expected a message with role and content, found the keys {', '.join(message)}.")
    calls = message.get("tool_calls")
    if not calls and message.get("function_call"):  # OpenAI's older form
        calls = [message["function_call"]]
    if said == "function_call":
        calls, content = [_json(content, place)], None
    found: Message = {"role": role, "content": text_of(_joined(content, place), place)}
    thinking = next((text for key in THINKING if (text := text_of(message.get(key), f"{place}.{key}")).strip()), None)
    if thinking is not None:
        found["thinking"] = thinking
    if calls:
        found["tool_calls"] = _calls(calls, f"{place}.tool_calls")
    for key in ("name", "tool_call_id"):
        if message.get(key) is not None:
            found[key] = text_of(message[key], f"{place}.{key}")
    said = [message[key] for key in ("train", "weight") if message.get(key) is not None]
    if said:
        found["train"] = all(said)
    return found


def _joined(content: Any, place: str) -> Any:
    """Content in several parts as one text."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        raise BadRow(place, "only parts of type text are supported; leave the others out.")
    return "".join(text_of(part.get("text"), place) for part in content)


def _calls(calls: Any, place: str) -> list[dict[str, Any]]:
    """Tool calls with arguments as mappings, as templates expect them; OpenAI has them as JSON text."""
    found = []
    for call in _list(calls, place):
        named = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(named, Mapping) or not isinstance(named.get("name"), str):
            raise BadRow(place, f"expected calls with a name and arguments, found {str(call)[:60]}.")
        arguments = named.get("arguments", named.get("parameters", {}))
        arguments = _json(arguments, place) if isinstance(arguments, str) and arguments.strip() else arguments or {}
        known = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        found.append({**known, "type": "function", "function": {"name": named["name"], "arguments": arguments}})
    return found


def tools_of(value: Any, field: str) -> list[Any] | None:
    """The tools of a row from a list of JSON schemas, or such a list as JSON text; None for none.

    A bare schema (`name`, `parameters`) is wrapped as a function, as templates expect it.
    """
    if value in (None, "", []):
        return None
    tools = _list(_json(value, field) if isinstance(value, str) else value, field)
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRow(field, f"expected a list of tools as JSON schemas, found {str(tools)[:60]}.")
    return [tool if "function" in tool else {"type": "function", "function": _bare(tool)} for tool in tools] or None


def _bare(tool: Mapping[str, Any]) -> dict[str, Any]:
    empty = {"description": "", "parameters": {"type": "object", "properties": {}}}
    return empty | {key: value for key, value in tool.items() if value is not None}


def history_of(value: Any, field: str) -> list[Message]:
    """Earlier turns: pairs of question and answer (LLaMA-Factory's Alpaca), or messages."""
    if value in (None, "", []):
        return []
    turns = _list(_json(value, field) if isinstance(value, str) else value, field)
    if all(isinstance(turn, Mapping) for turn in turns):
        return messages_of(turns, field)
    messages: list[Message] = []
    for place, pair in enumerate(turns):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow(f"{field}[{place}]", f"expected a question and its answer, found {str(pair)[:60]}.")
        roles = zip(("user", "assistant"), pair, strict=True)
        messages += [{"role": role, "content": text_of(said, f"{field}[{place}]")} for role, said in roles]
    return messages


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadRow(place, f"expected a list, found {type(value).__name__}.")
    return value


def _json(value: Any, place: str) -> Any:
    try:
        return json.loads(value)
    except (TypeError, ValueError) as error:
        raise BadRow(place, f"expected JSON, found {str(value)[:60]!r} ({error}).") from None


def context_columns(found: list[str], used: set[str]) -> list[str]:
    """Columns whose names suggest context and that are not read."""
    return [name for name in found if name not in used and any(word in name.lower() for word in CONTEXT)]


def plain(message: Mapping[str, Any]) -> Message:
    """A message without empty keys, its tool calls decoded from JSON."""
    found = {key: value for key, value in message.items() if value is not None}
    if isinstance(found.get("tool_calls"), str):
        found["tool_calls"] = json.loads(found["tool_calls"])
    return found
