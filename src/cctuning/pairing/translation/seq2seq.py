"""Translate with a local sequence-to-sequence model: NLLB, M2M100, MADLAD (a T5) or Opus-MT (Marian).

They differ in how the languages are given:

    NLLB      source: its code as a token of the input   target: its code forced as the first token of the output
    M2M100    the same, with other codes
    MADLAD    source: not given                          target: `<2sw>` before the text
    Opus-MT   source: fixed by the model                 target: `>>swh<<` before the text, where a model has several

Segments are batched by length. A translation does not depend on the rest of its batch: only segments with the same
limit on the length of their translation share a batch. A translation that does not end within the limit is a problem.

Only safetensors weights are read, and no code of a repository is run.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

from cctuning.errors import UserError, nearest
from cctuning.files import file_hash
from cctuning.languages import base, is_code, language_name, matches, matching, same, unknown
from cctuning.pairing.translation.translator import Answer, Done, Engine, SegmentOptions
from cctuning.settings import from_mapping, option

BUCKET = 32  # source tokens: lengths are rounded up to this before the limit is set
# languages in the vocabulary of NLLB, M2M100, MADLAD and Opus-MT
CODE = re.compile(r"([a-z]{3}_[A-Z][a-z]{3})|__([a-z]{2,3})__|<2([A-Za-z_]{2,})>|>>([A-Za-z_]{2,})<<")


@dataclass(frozen=True, kw_only=True)
class Seq2SeqOptions(SegmentOptions):
    """The model and its settings; it translates sentence by sentence, as such models were trained."""

    split: str = option("sentences", **SegmentOptions.__dataclass_fields__["split"].metadata)
    max_chars: int = option(400, "Longest segment, in characters.", least=20)
    model: str = option(help="Directory or hub name.")
    revision: str | None = option(None, "Revision on the hub.")
    device: str | None = option(None, "cpu, cuda, cuda:1, ...; unset: a GPU if there is one.")
    dtype: str | None = option(
        None,
        "Of the weights; unset: bfloat16 on a GPU, float32 on a CPU.",
        choices=("float32", "bfloat16", "float16", None),
    )
    batch_size: int = option(32, "Segments per batch; halved when memory runs out.", least=1)
    num_beams: int = option(4, "Beams; 1 is greedy and faster.", least=1)
    max_new_tokens: int = option(512, "Longest translation of a segment, in tokens.", least=1)


class Seq2Seq(Engine):
    """The seq2seq engine. The model is loaded when the first segment needs it; one is in memory at a time."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options: Seq2SeqOptions = from_mapping(Seq2SeqOptions, options, "translation engine seq2seq")
        self.device = torch.device(self.options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        default = "float32" if self.device.type == "cpu" else "bfloat16"
        self.dtype = self.options.dtype or default
        self.name = f"seq2seq {self.options.model}"
        self._batch_size = self.options.batch_size
        self._place = self.options.model
        self._tokenizer: Any = None
        self._model: Any = None
        self.counts = Counter(requests=0, prompt_tokens=0, completion_tokens=0)

    def identity(self, source: str, target: str) -> dict[str, Any]:
        """A hash of the model, its language codes and the settings of generation."""
        self._open()
        codes = self._languages(source, target)
        settings = {name: getattr(self.options, name) for name in ("num_beams", "max_new_tokens")}
        return {"engine": "seq2seq", "model": self._version, "dtype": self.dtype, "codes": codes, **settings}

    def _open(self) -> None:
        if self._tokenizer is not None:
            return
        place = self._place
        try:
            kwargs = {"revision": self.options.revision, "trust_remote_code": False}
            self._config = AutoConfig.from_pretrained(place, **kwargs)
            if self._config.model_type not in ("m2m_100", "t5", "marian"):
                raise UserError(
                    f"{place}: a model of type {self._config.model_type}; expected NLLB, M2M100, MADLAD or Opus-MT. "
                    "For a chat model start a server and use engine: chat."
                )
            self._tokenizer = AutoTokenizer.from_pretrained(place, **kwargs)
        except ImportError as error:
            raise UserError(
                f"{place}: its tokenizer needs a package that is missing: pip install 'cc-tuning[pair]'. ({error})"
            ) from None
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{place}: cannot be opened as a model: {error}") from None
        self._version: Any
        if Path(place).is_dir():  # by content, so that a model may be moved
            self._version = [file_hash(file) for file in sorted(Path(place).iterdir()) if file.is_file()]
        else:
            self._version = f"{place}@{self._config._commit_hash}"
        tokens = self._tokenizer.get_vocab().keys() | set(self._tokenizer.all_special_tokens)
        self._codes = {match[match.lastindex or 0]: match[0] for match in map(CODE.fullmatch, tokens) if match}
        if not self._codes:
            # M2M100's tokenizer has the codes apart from the vocabulary where the files on disk do not list them.
            self._codes = {code: f"__{code}__" for code in getattr(self._tokenizer, "lang_code_to_id", ())}
        if not self._codes and self._config.model_type != "marian":
            raise UserError(f"{place}: its tokenizer holds no language codes; expected NLLB, M2M100 or MADLAD.")

    def _languages(self, source: str, target: str) -> tuple[str | None, str | None]:
        """The tokens for source and target; None where the model takes none."""
        if self._config.model_type == "marian":
            stated = [self._tokenizer.init_kwargs.get(f"{end}_lang") for end in ("source", "target")]
            if all(stated) and same(stated[0], target) and same(stated[1], source):
                raise UserError(f"{self._place}: translates from {stated[0]} to {stated[1]}, the other way round.")
            if not self._codes:
                return None, None
        to = self._codes[resolve(target, self._codes, self._place)]
        if self._config.model_type == "m2m_100":
            return self._codes[resolve(source, self._codes, self._place)], to
        return None, to

    def run(self, segments: Sequence[str], source: str, target: str, done: Done) -> None:
        """Translate in batches of similar length, longest first, so that memory runs out early or not at all."""
        self._open()
        self._load()
        source_token, target_token = self._languages(source, target)
        if source_token:
            # the code, not the token: `sw` for `__sw__`
            self._tokenizer.src_lang = next(code for code, token in self._codes.items() if token == source_token)
            prefix, forced = "", self._tokenizer.convert_tokens_to_ids(target_token)
        else:
            prefix, forced = f"{target_token} " if target_token else "", None
        # A T5 has relative positions and no limit.
        longest = self._tokenizer.model_max_length
        if self._config.model_type != "t5":
            longest = min(longest, self._config.max_position_embeddings)
        encoded = self._tokenizer([prefix + segment for segment in segments], verbose=False)["input_ids"]
        queue = []
        for index, ids in enumerate(encoded):
            if len(ids) > longest:
                problem = f"{len(ids)} tokens are more than the model reads; lower max_chars"
                done(index, Answer(None, problem, passing=True))
            else:
                queue.append((math.ceil(len(ids) / BUCKET), len(ids), index))
        queue.sort(reverse=True)
        while queue:
            bucket = queue[0][0]
            batch = [item for item in queue[: self._batch_size] if item[0] == bucket]
            limit = min(self.options.max_new_tokens, 3 * bucket * BUCKET + 64)
            try:
                answers = self._generate([encoded[index] for _, _, index in batch], forced, limit)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                if len(batch) > 1:
                    self._batch_size = len(batch) // 2
                    continue
                answers = [Answer(None, "memory ran out on this segment alone; lower max_chars", passing=True)]
            for (_, _, index), answer in zip(batch, answers, strict=True):
                done(index, answer)
            del queue[: len(batch)]

    def _load(self) -> None:
        if self._model is not None:
            return
        try:
            model = AutoModelForSeq2SeqLM.from_pretrained(
                self._place,
                revision=self.options.revision,
                dtype=self.dtype,
                use_safetensors=True,
                trust_remote_code=False,
            )
        except OSError as error:
            raise UserError(
                f"{self._place}: cannot be loaded: {error} (Only weights in safetensors are read; revision can name "
                "one on the hub that has them.)"
            ) from None
        self._model = model.to(self.device).eval()
        # Marian's configuration forces an end at the limit, which makes a cut translation look complete.
        self._model.generation_config.forced_eos_token_id = None

    def _generate(self, ids: list[list[int]], forced: int | None, limit: int) -> list[Answer]:
        """Translate one batch; `limit` in new tokens."""
        batch = self._tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                forced_bos_token_id=forced,
                num_beams=self.options.num_beams,
                do_sample=False,
                max_new_tokens=limit,
            )
        ends = self._model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        answers = []
        self.counts["requests"] += 1
        self.counts["prompt_tokens"] += sum(map(len, ids))
        # without the start token, which is NLLB's end token, and the code of the target
        for row in output[:, 1 if forced is None else 2 :].tolist():
            length = next((place for place, token in enumerate(row) if token in ends), None)
            self.counts["completion_tokens"] += len(row) if length is None else length + 1
            if length is None:
                answers.append(Answer(None, f"no end of the translation within {limit} tokens"))
                continue
            text = self._tokenizer.decode(row[:length], skip_special_tokens=True).strip()
            answers.append(Answer(text) if text else Answer(None, "empty translation"))
        return answers

    def close(self) -> None:
        self._model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def resolve(tag: str, codes: Collection[str], where: str) -> str:
    """The code among `codes` (`swh_Latn`, `sw`) that means the language `tag`; errors call the model `where`.

    The script must agree, unless the model has only one code for the language.
    """
    if tag in codes:
        return tag
    if not is_code(tag):
        raise UserError(f"{where}: {unknown(tag)}")
    known = {"nso" if code == "ns" else code: code for code in codes}  # M2M100's code of Northern Sotho
    found = sorted(matching(tag, known), key=len)  # shortest first: the language before one of its variants
    if len(found) == 1 or (found and matches(tag, found[0])):
        return known[found[0]]
    others = [code for code in sorted(known) if is_code(code) and base(code) == base(tag)]
    if others:
        raise UserError(f"{where}: language {tag!r}: known only as {', '.join(others)}; name one of them.")
    hint = nearest(base(tag), {base(code) for code in known if is_code(code)})
    hint = hint or f" It knows {len(codes)} languages: {', '.join(sorted(codes)[:5])}, …"
    raise UserError(f"{where}: no code for the language {tag!r} ({language_name(tag)}).{hint}")
