"""Encode rows and data sets of rows as token ids: prompt, response and reference prompt.

Prompt and reference are tokenised separately, exactly as at inference, and each has its own length limit. A reference
is never truncated, because the row connects to its last token. The response starts after the tokens of the prompt
alone; no token id is searched for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, Features, List, Value

from cctuning.data.rendering import Renderer, Span, common
from cctuning.data.schema import Text
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


@dataclass
class Encoder(Renderer):
    """Encodes rows with one tokenizer; `Renderer` has the options of the chat template.

    Attributes:
        max_length: most tokens of prompt and response together; the end of the response is cut. None: no limit.
        max_reference_length: most tokens of a reference; a longer one is an error. None: no limit.
        eos: end each response with the eos token, unless the template ends it with a token of its own.
        opening: (set) special tokens that the tokenizer puts before plain text.
        frame: (set) numbers of tokens that the template writes before and after a prompt's own text.
    """

    max_length: int | None = None
    max_reference_length: int | None = None
    eos: bool = True
    opening: list[int] = field(init=False, default_factory=list)
    frame: tuple[int, int] = field(init=False, default=(0, 0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chat:
            self.frame = self._find_frame()
        else:
            self.opening = self._find_opening()
            self.frame = len(self.opening), 0
        if self._appends_eos and self.tokenizer.eos_token_id is None:
            raise UserError(
                f"tokenizer {self.tokenizer.name_or_path!r} has no eos token, so a model trained with it would never "
                "stop; set the recipe's eos_token."
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

    def _find_frame(self) -> tuple[int, int]:
        """Numbers of tokens that two different prompts share at their start and at their end."""
        try:
            one, other = self._ids([self.render("a word"), self.render("0.")])
        except UserError:  # a template that requires other turns
            return 0, 0
        return common(one, other), common(one[::-1], other[::-1])

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, with only the special tokens that are in the text; one call for all."""
        if not texts:
            return []
        return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    def prompt_ids(self, prompt: Text, row: Mapping[str, Any] | None = None) -> list[int]:
        """Token ids of a prompt or a reference, the same in training and inference."""
        return self._opened(self._ids([self.render(prompt, row)])[0])

    def _opened(self, ids: list[int]) -> list[int]:
        # A text may begin with a bos of its own: not twice.
        return ids if self.opening and ids[: len(self.opening)] == self.opening else self.opening + ids

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
        return {name: encoded[name] for name in FEATURES}

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | UserError]:
        """Each row as `encode_row` returns it, with `cut`: whether the end of its response is missing; or the
        `UserError` that says why it cannot be used."""
        rendered = [self._rendered(row) for row in rows]
        ids = iter(self._ids([text for texts in rendered if isinstance(texts, tuple) for text in texts]))
        return [
            texts if isinstance(texts, UserError) else self._encoded(row, texts, next(ids), next(ids), next(ids))
            for row, texts in zip(rows, rendered, strict=True)
        ]

    def _rendered(self, row: Mapping[str, Any]) -> tuple[str, str, str] | UserError:
        """The prompt, the prompt with the response, and the reference, as text."""
        try:
            prompt = self.render(row["prompt"], row)
            response = self.answer(row, prompt) if row.get("response") is not None else ""
            reference = self.render(row["reference"], row) if row.get("reference") is not None else ""
        except UserError as error:
            return at(row, "prompt", str(error))
        return prompt, prompt + response, reference

    def _encoded(
        self, row: Mapping[str, Any], texts: tuple[str, str, str], bare: list[int], whole: list[int], other: list[int]
    ) -> dict[str, Any] | UserError:
        """The encoded row from the token ids of each of its `texts`."""
        if not bare:
            return at(row, "prompt", "is empty after tokenisation; correct the row.")
        prompt, response, reference = self._opened(bare), list[int](), list[int]()
        if row.get("response") is not None:
            # Where tokens merge across the border, prompt and response are tokenised separately, so that the prompt
            # has the tokens of inference. An unknown token may absorb what follows it.
            merged = whole[: len(bare)] != bare or len(whole) == len(bare) or bare[-1] == self.tokenizer.unk_token_id
            response = self._ids([texts[1].removeprefix(texts[0])])[0] if merged else whole[len(bare) :]
            if not response:
                return at(row, "response", "is empty after tokenisation; correct the row.")
            if self._appends_eos and response[-1] != self.tokenizer.eos_token_id:
                response.append(self.tokenizer.eos_token_id)
        limit, advice = self.max_length, "raise max_length or shorten the prompt."
        if limit is not None and response and len(prompt) >= limit:
            lengths = f"the prompt has {len(prompt)} tokens, the response {len(response)}, and max_length is {limit}"
            return at(row, "response", f"no tokens of it would be left: {lengths}; {advice}")
        if limit is not None and len(prompt) > limit:
            why = "the row connects at its last token, so it is never cut"
            return at(row, "prompt", f"{len(prompt)} tokens, and max_length is {limit}; {why}: {advice}")
        if row.get("reference") is not None:
            if not other:
                return at(row, "reference", "is empty after tokenisation; correct the row.")
            reference, most = self._opened(other), self.max_reference_length
            if most is not None and len(reference) > most:
                why = "the row connects to its last token, so it is never cut"
                why += ": raise max_reference_length or shorten it."
                return at(row, "reference", f"{len(reference)} tokens, and max_reference_length is {most}; {why}")
        labels = [-100] * len(prompt)
        try:
            learned = self.learned(row, texts[0])
        except UserError as error:
            return at(row, "prompt", str(error))
        for start, end in self._positions(learned, texts[0]):
            start, end = (place + len(prompt) - len(bare) for place in (start, end))
            labels[start:end] = prompt[start:end]
        return {
            "cut": limit is not None and len(prompt) + len(response) > limit,
            "input_ids": (prompt + response)[:limit],
            "labels": (labels + response)[:limit],
            "reference_input_ids": reference,
            "text": self._text(row, "prompt", texts[0], prompt),
            "reference_text": self._text(row, "reference", texts[2], reference) if reference else [],
            "row": row.get("row", -1),
            "lang": row.get("lang") or "",
        }

    def _text(self, row: Mapping[str, Any], part: str, text: str, ids: list[int]) -> list[int]:
        """First position of a side's own text, without the template's, and the one after its last."""
        aligned = self.aligned(row, part, text)
        start, end = self._positions([aligned], text)[0] if aligned else (self.frame[0], len(ids) - self.frame[1])
        return [start, end] if start < end else [0, len(ids)]

    def _positions(self, spans: Sequence[Span], text: str) -> list[Span]:
        """Spans of characters as spans of tokens, with a token that begins in the space before a span."""
        if not spans:
            return []
        whole, *parts = self._ids([text, *(text[:place] for span in spans for place in span)])
        starts = [common(whole, ids) for ids in parts[::2]]
        return list(zip(starts, map(len, parts[1::2]), strict=True))


def at(row: Mapping[str, Any], part: str, reason: str) -> UserError:
    return UserError(f"{origin_of(row)}: {part}: {reason}")


def origin_of(row: Mapping[str, Any]) -> str:
    return str(row.get("origin") or f"row {row.get('row', '?')}")


def encode_dataset(
    dataset: Dataset,
    encoder: Encoder,
    *,
    bad_rows: str = "error",
    own_references: str | None = None,
    num_proc: int | None = None,
    desc: str = "Tokenising rows",
    notes: list[str] | None = None,
) -> tuple[Dataset, list[tuple[str, str]]]:
    """`Encoder.encode_row` over rows in the schema of `cctuning.data.schema`, with progress.

    Args:
        bad_rows: `error` stops at the first row that cannot be used; `skip` leaves such rows out.
        own_references: the reference language, if rows in it are their own reference.
        notes: warnings about rows are appended to it.

    Returns:
        The encoded rows, and (origin, reason) of those left out.
    """
    encoded = dataset.map(
        _encode_batch,
        batched=True,
        fn_kwargs={"encoder": encoder, "skip": bad_rows == "skip", "home": own_references},
        remove_columns=dataset.column_names,
        features=Features({**FEATURES, **dict.fromkeys(("origin", "problem", "warning"), Value("string"))}),
        num_proc=num_proc if num_proc and 1 < num_proc <= len(dataset) else None,
        desc=desc,
        load_from_cache_file=False,  # a change in this module would not change the cache key
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
    if notes is not None:
        notes += _warnings(encoded)
    return encoded.remove_columns(["origin", "problem", "warning"]), skipped


def _warnings(encoded: Dataset) -> list[str]:
    """Each warning with the number of its rows and the first of them."""
    found: dict[str, list[str]] = {}
    for warning, origin in zip(encoded["warning"], encoded["origin"], strict=True):
        if warning is not None:
            found.setdefault(warning, []).append(origin)
    return [f"{len(rows)} of {len(encoded)} rows (the first: {rows[0]}): {warning}" for warning, rows in found.items()]


def _encode_batch(
    columns: dict[str, list[Any]], encoder: Encoder, skip: bool, home: str | None
) -> dict[str, list[Any]]:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for row in rows:
        if home is not None and row.get("reference") is None and row.get("lang") in ("", home):
            row["reference"] = row["prompt"]
    found: list[dict[str, Any]] = []
    for row, encoded in zip(rows, encoder.encode(rows), strict=True):
        more = {"origin": origin_of(row), "problem": None, "warning": encoder.warning(row)}
        if not isinstance(encoded, UserError) and encoded["cut"]:
            more["warning"] = (
                f"the response is cut at max_length: {encoder.max_length}, so it loses its end and does not teach the "
                "model to stop; raise max_length, or leave such rows out"
            )
        if isinstance(encoded, UserError):
            if not skip:
                raise UserError(f"{encoded} (Or set bad_rows: skip to leave out such rows.)")
            more["problem"] = str(encoded).removeprefix(f"{more['origin']}: ")
            encoded = {**{name: [] for name in FEATURES}, "row": -1, "lang": ""}
        found.append({**encoded, **more})
    return {name: [one[name] for one in found] for name in (*FEATURES, "origin", "problem", "warning")}
