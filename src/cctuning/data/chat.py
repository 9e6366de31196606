"""Settle a chat template: fix its arguments, and the prompt up to the first token of the answer.

Templates write more than turns. Some open a thinking block in the prompt (`<think>`), some write an empty one before
an answer without thinking, or the name of a channel (`<|channel|>final<|message|>`), and most take arguments. Ignored,
all of this would be trained on and scored. So a template is *settled* before anything is rendered: its arguments
become defaults, and what it writes before every plain answer becomes part of the prompt. The settled template is saved
with the tokenizer, so that every command and every server renders what training saw.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jinja2 import meta
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from cctuning.data.messages import THINKING
from cctuning.errors import UserError

ANSWER, THOUGHT, QUESTION = "CCTUNINGANSWER", "CCTUNINGTHOUGHT", "CCTUNINGQUESTION"  # placeholders in a rendering
SWITCHES = ("enable_thinking", "thinking")  # template arguments that turn thinking on and off
MARK, THINKS = "{# settled by cctuning #}", "{# settled by cctuning, thinking #}"
NAMES = "think|thinking|thought|reasoning"
CHANNEL = "\n<channel|>"  # ends Gemma's thinking; some of its templates leave it out
# Text with thinking in it: the block, which the prompt may have opened, and the answer after it
OWN = re.compile(rf"\s*(?:<(?:{NAMES})>)?(.*?)</(?:{NAMES})>\s*", re.DOTALL)
OPEN = re.compile(rf"<({NAMES})>\s*\Z")


@dataclass(frozen=True)
class Settled:
    """A settled template.

    Attributes:
        template: Jinja text.
        thinks: a prompt leaves it to the model whether to think before the answer.
        before: text that was moved into the prompt: what the template writes before a plain answer.
        arguments: the template arguments that are set in it.
        closing: text after an answer.
        lead: text before an answer without thinking, after a prompt that leaves thinking to the model.
        opening: text that a model writes before it thinks, after such a prompt; empty: the prompt has it.
        ending: text between thinking and answer. `opening` and `ending` are None for templates without thinking.
        unread: arguments that the template does not read.
    """

    template: str
    thinks: bool
    before: str
    arguments: dict[str, Any]
    closing: str
    lead: str
    opening: str | None
    ending: str | None
    unread: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """What differs from the rendering of the original template."""
        said = [f"it is given {', '.join(f'{k}={v!r}' for k, v in self.arguments.items())}"] if self.arguments else []
        said += [f"prompts end with {self.before!r}, which it writes before a plain answer"] if self.before else []
        return [f"chat template: {'; '.join(said)}. It is saved so, with the tokenizer."] if said else []

    def ignored(self) -> list[str]:
        """A note on arguments without effect."""
        names = ", ".join(self.unread)
        return [f"chat_template_kwargs: the chat template does not read {names}: no effect."] if names else []


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    template: str | None,
    prompt: bool,
    arguments: Mapping[str, Any] | None = None,
    tools: list[Any] | None = None,
) -> str:
    """Render messages; `prompt`: with the opening of the assistant's turn."""
    given: list[Any] = list(messages)
    options: dict[str, Any] = {"tools": tools} if tools else {}
    try:
        text = tokenizer.apply_chat_template(
            given, tokenize=False, add_generation_prompt=prompt, chat_template=template, **options, **(arguments or {})
        )
    except (TemplateError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"the chat template rejects these messages ({error}); correct them or the template.") from None
    return str(text)


def own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's template; the default one of several."""
    found: Any = tokenizer.chat_template
    return found.get("default") if isinstance(found, dict) else found


def answer_message(content: str | None, thinking: str | None = None) -> dict[str, Any]:
    """An assistant turn, with its thinking under every key that a template may read."""
    message: dict[str, Any] = {"role": "assistant", "content": content or ""}
    return message | (dict.fromkeys(THINKING, thinking) if thinking else {})


def split_thinking(text: str) -> tuple[str | None, str]:
    """Split an answer into its thinking block (None for none) and the text after it."""
    found = OWN.match(text) if "</" in text else None
    return (found.group(1).strip("\n"), text[found.end() :]) if found else (None, text)


def settle(
    tokenizer: PreTrainedTokenizerBase,
    template: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    thinking: bool | None = None,
) -> Settled:
    """Settle a template; one that is settled already keeps its settings.

    Args:
        template: None: the tokenizer's own.
        arguments: of the template, for example `enable_thinking`.
        thinking: whether answers contain thinking. None: no, unless `arguments` turn it on or a settled template has
            it on. Without thinking, prompts ask for the answer itself, by the template's own means or an empty block.
    """
    source = template if template is not None else own_template(tokenizer)
    if source is None:
        raise UserError("the tokenizer has no chat template.")
    given = dict(arguments or {})
    mark = next((mark for mark in (MARK, THINKS) if source.startswith(mark)), None)
    source = source.removeprefix(mark or "")
    known = _variables(source)
    switch = next((name for name in SWITCHES if name in known), SWITCHES[0])
    asked = [bool(given.pop(name)) for name in SWITCHES if name in given]
    thinks = asked[0] if asked else thinking if thinking is not None else mark == THINKS
    if switch in known and (mark is None or thinks != (mark == THINKS)):
        given[switch] = thinks
    before = "" if thinks or mark else _before(tokenizer, source, given)
    changed = bool(given or before or thinks or mark)
    settled = (THINKS if thinks else MARK) + _bake(source, given, before, switch) if changed else source
    probe = [{"role": "user", "content": QUESTION}]
    if QUESTION not in render(tokenizer, probe, source, True, given):
        raise UserError(
            "the chat template leaves out messages of plain text (as those of image models do); give another with "
            "chat_template_path."
        )
    if render(tokenizer, probe, settled, True) != render(tokenizer, probe, source, True, given) + before:
        raise UserError(
            f"the chat template cannot be given {', '.join(given) or 'an ending'}: it sets that itself; write it into "
            "the template (chat_template_path)."
        )
    unread = [name for name in arguments or () if name not in known and name not in SWITCHES]
    return replace(_described(tokenizer, settled, thinks, before, given, switch), unread=unread)


def _described(
    tokenizer: PreTrainedTokenizerBase, template: str, thinks: bool, before: str, given: dict[str, Any], switch: str
) -> Settled:
    question = {"role": "user", "content": QUESTION}
    thinking = {switch: True}
    prompt = render(tokenizer, [question], template, True, thinking)
    closing = lead = ""
    ending = closes(prompt) or (CHANNEL if CHANNEL.strip() in template else None)
    opening = "" if closes(prompt) else None
    try:
        whole = render(tokenizer, [question, answer_message(ANSWER)], template, False)
        closing = whole.rpartition(ANSWER)[2] if ANSWER in whole else ""
        whole = render(tokenizer, [question, answer_message(ANSWER)], template, False, thinking)
        if whole.startswith(prompt):
            lead = whole[len(prompt) :].partition(ANSWER)[0]
        whole = render(tokenizer, [question, answer_message(ANSWER, THOUGHT)], template, False, thinking)
        between = re.search(f"{THOUGHT}(.*?){ANSWER}", whole, re.DOTALL)
        ending = between.group(1) if between else ending
        if between and whole.startswith(prompt):
            opening = whole[len(prompt) :].partition(THOUGHT)[0]
    except UserError:  # a template that requires other turns
        pass
    return Settled(template, thinks, before, given, closing, lead, opening, ending)


def _variables(template: str) -> set[str]:
    """The variables that a template reads."""
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols", _Generation])
    try:
        return set(meta.find_undeclared_variables(environment.parse(template)))
    except TemplateError as error:
        raise UserError(f"the chat template is not valid Jinja ({error}); correct it.") from None


class _Generation(Extension):
    """Ignores `{% generation %}`, with which templates mark assistant turns."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _before(tokenizer: PreTrainedTokenizerBase, template: str, arguments: Mapping[str, Any]) -> str:
    """What the template writes between a prompt and a plain answer; where it only opens a block, the end of that."""
    question = {"role": "user", "content": QUESTION}
    asked = render(tokenizer, [question], template, True, arguments)
    try:
        whole = render(tokenizer, [question, answer_message(ANSWER)], template, False, arguments)
    except UserError:  # it requires other turns
        whole = ""
    if whole.startswith(asked) and ANSWER in whole[len(asked) :]:
        before = whole[len(asked) :].partition(ANSWER)[0]
        return "" if before.strip(" ") == "" else before  # a space is part of the answer's first token
    return closes(asked)


def closes(prompt: str) -> str:
    """The end of the thinking block that a prompt opens; empty where it opens none."""
    found = OPEN.search(prompt)
    if found is None:
        return ""
    return ("" if prompt.endswith("\n") else "\n") + f"\n</{found.group(1)}>\n\n"


def _bake(template: str, arguments: Mapping[str, Any], before: str, switch: str) -> str:
    """The template with its arguments as defaults, and `before` after prompts without thinking."""
    defaults = "".join(
        f"{{% if {name} is not defined %}}{{% set {name} = {value!r} %}}{{% endif %}}"
        for name, value in arguments.items()
    )
    if not before:
        return defaults + template
    plain = f"add_generation_prompt and ({switch} is not defined or not {switch})"
    return f"{defaults}{template.removesuffix(chr(10))}{{% if {plain} %}}{{{{ {before!r} }}}}{{% endif %}}"
