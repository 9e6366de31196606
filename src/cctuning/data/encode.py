"""From rows to token ids: the prompt exactly as it will be seen at inference, the response, the reference by itself.

Each side is rendered and tokenised on its own and has a length budget of its own: a long response can never cut the
reference, and a reference is never cut at all, because its end is the anchor that the row connects to. No prompt's end
is looked for by token id: the prompt is tokenised alone, and its length is where the response starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, Features, List, Value
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from cctuning.data.handed import Reading
from cctuning.data.rows import BadRow, Text
from cctuning.errors import UserError

IDS = List(Value("int32"))
FEATURES = {
    "input_ids": IDS,
    "labels": IDS,
    "reference_input_ids": IDS,
    "text": IDS,
    "reference_text": IDS,
    "row": Value("int64"),
    "lang": Value("string"),
}
ANSWER = "CCTUNINGANSWER"  # stands for a response while a template is asked what it writes after one


@dataclass
class Encoder:
    """Turns rows into token ids with one tokenizer; build it once and use it for many rows.

    Attributes:
        tokenizer: of the model.
        max_length: tokens of prompt and response together; the response's end is cut. None: no limit.
        max_reference_length: tokens of a reference; a longer one is an error. None: no limit.
        chat: render with the chat template; a plain prompt becomes one user message.
        chat_template: Jinja text to use instead of the tokenizer's own.
        eos: end each response with the eos token, unless the template ends it with a mark of its own.
        opening: (found out) the special tokens that this tokenizer puts before a plain text.
        closing: (found out) what the template writes after a response.
        frame: (found out) how many tokens the template writes before and after a prompt's own text.

    Raises:
        UserError: on construction, where the tokenizer lacks the chat template or the eos token that is needed.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = None
    max_reference_length: int | None = None
    chat: bool = False
    chat_template: str | None = None
    eos: bool = True
    opening: list[int] = field(init=False, default_factory=list)
    closing: str = field(init=False, default="")
    frame: tuple[int, int] = field(init=False, default=(0, 0))

    def __post_init__(self) -> None:
        name = f"tokenizer {self.tokenizer.name_or_path!r}"
        if self.chat:
            if self.chat_template is None and self.tokenizer.chat_template is None:
                raise UserError(
                    f"{name} has no chat template; set chat_template_path to a Jinja file or to a tokenizer that has "
                    "one, or set chat: false."
                )
            self.closing = self._find_closing()
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

    def _find_opening(self) -> list[int]:
        for probe in ("a", "0", "."):
            bare, whole = self._ids([probe])[0], list(self.tokenizer(probe)["input_ids"])
            for start in range(len(whole) - len(bare) + 1 if bare else 0):
                if whole[start : start + len(bare)] == bare:
                    return whole[:start]
        return []

    def _find_closing(self) -> str:
        question = {"role": "user", "content": "?"}
        try:
            whole = self._apply([question, {"role": "assistant", "content": ANSWER}], prompt=False)
        except UserError:  # a template that insists on turns of its own: close with eos
            return ""
        return whole.rpartition(ANSWER)[2] if ANSWER in whole else ""

    def _find_frame(self) -> tuple[int, int]:
        """Tokens that two unlike prompts share at their start and at their end."""
        try:
            one, other = self._ids([self.render("a word"), self.render("0.")])
        except UserError:  # a template that insists on turns of its own
            return 0, 0
        before, after = (
            next((place for place, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), 0)
            for x, y in ((one, other), (one[::-1], other[::-1]))
        )
        return before, after

    def _text(self, prompt: list[int]) -> list[int]:
        """First position of the prompt's own text and the one after its last: what is not the template's."""
        start, end = self.frame[0], len(prompt) - self.frame[1]
        return [start, end] if start < end else [0, len(prompt)]

    def _apply(self, messages: list[dict[str, str]], prompt: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt, chat_template=self.chat_template
            )
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise UserError(
                f"the chat template refuses these messages ({error}); mend them or the template."
            ) from None
        return str(text)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids without special tokens beyond those written in the text; one call, which fast tokenizers parallelise."""
        if not texts:
            return []
        return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    def render(self, prompt: Text) -> str:
        """The text of a prompt as the model sees it, up to where its answer starts.

        Raises:
            UserError: messages where `chat` is off, or the template refuses them.
        """
        if self.chat:
            return self._apply(_messages(prompt), prompt=True)
        if not isinstance(prompt, str):
            raise UserError("the prompt is messages and chat is off; set chat: true, or give text.")
        return prompt

    def prompt_ids(self, prompt: Text) -> list[int]:
        """Ids of a prompt or a reference, as training and inference both see it."""
        return self._opened(self._ids([self.render(prompt)])[0])

    def _opened(self, ids: list[int]) -> list[int]:
        # A text may bring its own opening (a bos written into it): never twice.
        return ids if self.opening and ids[: len(self.opening)] == self.opening else self.opening + ids

    def _rest(self, row: Mapping[str, Any], text: str) -> str:
        """What follows the rendered prompt `text`: the response, and what the template closes it with."""
        if not self.chat:
            return str(row["response"])
        answer = {"role": "assistant", "content": row["response"]}
        whole = self._apply([*_messages(row["prompt"]), answer], prompt=False)
        # A template may render the last turn otherwise once it is answered (a thinking block, say); what the model
        # will be asked with is the prompt alone, so that is kept.
        return whole[len(text) :] if whole.startswith(text) else row["response"] + self.closing

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | UserError]:
        """Ids of each row as `encode_row` gives them, or the `UserError` that says why it cannot be used."""
        texts: list[str] = []
        slots: list[UserError | tuple[str, int]] = []  # of a good row: its rest, and where its texts start
        for row in rows:
            try:
                prompt = self.render(row["prompt"])
                rest = self._rest(row, prompt) if row.get("response") is not None else ""
                reference = self.render(row["reference"]) if row.get("reference") is not None else ""
            except UserError as error:
                slots.append(_at(row, "prompt", str(error)))
            else:
                slots.append((rest, len(texts)))
                texts += [prompt, prompt + rest, reference]
        ids = self._ids(texts)
        result: list[dict[str, Any] | UserError] = []
        for row, slot in zip(rows, slots, strict=True):
            try:
                if isinstance(slot, UserError):
                    raise slot
                result.append(self._assemble(row, slot[0], *ids[slot[1] : slot[1] + 3]))
            except UserError as error:
                result.append(error)
        return result

    def _assemble(
        self, row: Mapping[str, Any], rest: str, bare: list[int], whole: list[int], reference: list[int]
    ) -> dict[str, Any]:
        if not bare:
            raise _at(row, "prompt", "the tokenizer makes no token of it; mend the row.")
        prompt, response = self._opened(bare), []
        if row.get("response") is not None:
            # Where tokens merge across the border (an unknown one swallows what touches it), the prompt keeps those of
            # inference and the response its own.
            merged = whole[: len(bare)] != bare or len(whole) == len(bare) or bare[-1] == self.tokenizer.unk_token_id
            response = self._ids([rest])[0] if merged else whole[len(bare) :]
            if not response:
                raise _at(row, "response", "the tokenizer makes no token of it; mend the row.")
            if self._appends_eos and response[-1] != self.tokenizer.eos_token_id:
                response.append(self.tokenizer.eos_token_id)
        limit, advice = self.max_length, "raise max_length or shorten the prompt."
        if limit is not None and response and len(prompt) >= limit:
            lengths = f"the prompt has {len(prompt)} tokens, the response {len(response)}, and max_length is {limit}"
            raise _at(row, "response", f"no token of it would be left: {lengths}; {advice}")
        if limit is not None and len(prompt) > limit:
            why = "its end is where the row connects, so it is never cut"
            raise _at(row, "prompt", f"{len(prompt)} tokens, and max_length is {limit}; {why}: {advice}")
        if row.get("reference") is not None:
            if not reference:
                raise _at(row, "reference", "the tokenizer makes no token of it; mend the row.")
            reference, most = self._opened(reference), self.max_reference_length
            if most is not None and len(reference) > most:
                why = "its end is the anchor, so it is never cut: raise max_reference_length or shorten the reference."
                raise _at(row, "reference", f"{len(reference)} tokens, and max_reference_length is {most}; {why}")
        return {
            "input_ids": (prompt + response)[:limit],
            "labels": ([-100] * len(prompt) + response)[:limit],
            "reference_input_ids": reference,
            "text": self._text(prompt),
            "reference_text": self._text(reference) if reference else [],
            "row": row.get("row", -1),
            "lang": row.get("lang") or "",
        }


def _messages(prompt: Text) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _at(row: Mapping[str, Any], part: str, reason: str) -> UserError:
    return UserError(f"{_origin(row)}: {part}: {reason}")


def _origin(row: Mapping[str, Any]) -> str:
    return str(row.get("origin") or f"row {row.get('row', '?')}")


def encode_row(
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    max_reference_length: int | None,
    chat: bool,
    chat_template: str | None = None,
    eos: bool = True,
) -> dict[str, Any]:
    """Token ids of one row; the options are those of `Encoder`.

    Args:
        row: `prompt`, and optionally `response`, `reference`, `lang`, `row`, `origin`.

    Returns:
        `input_ids`; `labels`, -100 up to the response, and everywhere where there is none; `reference_input_ids`,
        empty where there is none; `text` and `reference_text`, first position of either's own text and the one after
        its last, without what the template adds; `row`; `lang`.

    Raises:
        UserError: nothing is left of the prompt or the response, or the reference is too long; names the row.
    """
    encoded = Encoder(tokenizer, max_length, max_reference_length, chat, chat_template, eos).encode([row])[0]
    if isinstance(encoded, UserError):
        raise encoded
    return encoded


def encode_dataset(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    max_reference_length: int | None,
    chat: bool,
    chat_template: str | None = None,
    eos: bool = True,
    bad_rows: str = "error",
    reading: Reading | None = None,
    num_proc: int | None = None,
    desc: str = "Tokenising rows",
) -> tuple[Dataset, list[tuple[str, str]]]:
    """`encode_row` over a data set of `load_rows`, with progress.

    Args:
        bad_rows: `error` stops at the first row that cannot be used; `skip` leaves such rows out.
        reading: of a data set that `load_rows` has not read and checked.
        num_proc: processes; None: this one.

    Returns:
        The encoded rows, and (origin, reason) of those left out.

    Raises:
        UserError: a bad row, or no row left.
    """
    encoder = Encoder(tokenizer, max_length, max_reference_length, chat, chat_template, eos)
    encoded = dataset.map(
        _encode_batch,
        batched=True,
        fn_kwargs={"encoder": encoder, "skip": bad_rows == "skip", "reading": reading},
        remove_columns=dataset.column_names,
        features=Features({**FEATURES, "origin": Value("string"), "problem": Value("string")}),
        num_proc=num_proc if num_proc and 1 < num_proc <= len(dataset) else None,
        desc=desc,
        load_from_cache_file=False,  # the cache's key does not see a change in this module
    )
    problems = encoded.data.column("problem").to_pylist()
    bad = [number for number, problem in enumerate(problems) if problem is not None]
    skipped = [(str(encoded[number]["origin"]), str(problems[number])) for number in bad]
    if len(bad) == len(problems):
        raise UserError(
            f"no usable row of {len(problems)}" + (f", the first: {': '.join(skipped[0])}" if bad else ".")
        )
    if bad:
        encoded = encoded.select([number for number, problem in enumerate(problems) if problem is None])
    return encoded.remove_columns(["origin", "problem"]), skipped


def _read(row: Mapping[str, Any], reading: Reading) -> dict[str, Any] | UserError:
    try:
        return reading(row)
    except BadRow as bad:
        return _at(row, bad.field, bad.reason)


def _encode_batch(
    columns: dict[str, list[Any]], encoder: Encoder, skip: bool, reading: Reading | None
) -> dict[str, list[Any]]:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    read = rows if reading is None else [_read(row, reading) for row in rows]
    good = iter(encoder.encode([row for row in read if not isinstance(row, UserError)]))
    result: dict[str, list[Any]] = {name: [] for name in (*FEATURES, "origin", "problem")}
    for row, found in zip(rows, read, strict=True):
        encoded = found if isinstance(found, UserError) else next(good)
        origin, problem = _origin(row), None
        if isinstance(encoded, UserError):
            if not skip:
                raise encoded
            problem = str(encoded).removeprefix(f"{origin}: ")
            encoded = {**{name: [] for name in FEATURES}, "row": -1, "lang": ""}
        for name, value in {**encoded, "origin": origin, "problem": problem}.items():
            result[name].append(value)
    return result
