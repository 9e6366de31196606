"""Models for lm-eval: `Journal` saves answers as they come; `ConnectedLM` runs a connection."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import find_executable_batch_size
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.models.utils_hf import stop_sequences_criteria
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from cctuning.data import Encoder
from cctuning.errors import UserError
from cctuning.model.connected import ConnectedModel
from cctuning.model.loading import Loaded
from cctuning.model.sites import unwrap
from cctuning.serving.stop_tokens import Thoughts, stop_tokens

CHUNK = 8  # batches between two writes to the journal
THINKING_TOKENS = 1024  # for a model that thinks before it answers
FIRST_BATCH = {"cpu": 16}  # on other devices 64, halved while memory runs out


class Journal(LM):
    """An lm-eval model that saves its answers as JSON lines and never runs a request twice.

    Args:
        inner: the model; `batch_size_per_gpu` is set to what fits.
        path: the file of answers; read if it exists.
        batch_size: None to halve it while memory runs out.
        stop: text that ends every answer, in addition to the stops of a task.
        thinking: additional tokens for a model that thinks before it answers, 0 for others.

    Attributes:
        asked: number of requests that the model ran.
        cut: task and number of each item whose prompt, with the answer, is longer than the model's context. lm-eval
            cuts the beginning of such prompts.
    """

    def __init__(
        self, inner: Any, path: Path, batch_size: int | None = None, stop: str | None = None, thinking: int = 0
    ) -> None:
        super().__init__()
        self.inner, self.path, self.stop, self.thinking = inner, path, stop, thinking
        self.label = ""  # of the progress bar; the task at work
        device = getattr(getattr(inner, "device", None), "type", "cpu")
        self.size = batch_size or FIRST_BATCH.get(device, 64)
        self.asked = 0
        self.cut: set[tuple[str | None, int | None]] = set()
        self.known: dict[str, Any] = {}
        if path.is_file():
            for line in path.read_bytes().split(b"\n"):  # splitlines() also splits at U+2028
                try:
                    key, answer = json.loads(line)
                except (ValueError, TypeError):
                    continue  # a line that was cut off with the run
                self.known[key] = answer

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        answers = self._through("loglikelihood", requests)
        return [(float(value), bool(greedy)) for value, greedy in answers]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return self._through("generate_until", requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise UserError("loglikelihood_rolling: tasks that measure perplexity are not supported.")

    @property
    def tokenizer_name(self) -> str:
        return self.inner.tokenizer_name

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.inner.apply_chat_template(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.inner.chat_template(chat_template)

    def _keys(self, kind: str, requests: list[Instance]) -> list[str]:
        """A key for each request, the same for the same request; a request that is repeated to draw several answers
        has several."""
        keys, drawn = [], Counter[str]()
        for request in requests:
            asked = [kind, *request.args]
            if getattr(self.inner, "in_reference_language", False):  # the same text has another answer then
                asked.append("in reference language")
            text = json.dumps(asked, ensure_ascii=False, sort_keys=True)
            if kind == "generate_until" and normalize_gen_kwargs(request.args[1])["do_sample"]:
                drawn[text] += 1
                text += f" {drawn[text]}"
            keys.append(hashlib.blake2b(text.encode(), digest_size=16).hexdigest())
        return keys

    def _through(self, kind: str, requests: list[Instance]) -> list[Any]:
        keys = self._keys(kind, requests)
        self.cut |= {(one.task_name, one.doc_id) for one in requests if self._too_long(kind, one)}
        pending = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.known}
        # The longest first: what does not fit fails at once, and the remaining time is overestimated at worst.
        order = sorted(pending, key=lambda key: -len("".join(str(part) for part in pending[key].args)))
        # `disable`: TQDM_DISABLE turns off the bars of lm-eval.
        with tqdm(total=len(order), desc=self.label, unit="request", smoothing=0, disable=False) as bar:
            while order:
                chunk, order = order[: CHUNK * self.size], order[CHUNK * self.size :]
                answers = self._answers(kind, [pending[key] for key in chunk])
                with self.path.open("a", encoding="utf-8") as journal:
                    for key, answer in zip(chunk, answers, strict=True):
                        _check_number(pending[key], answer)
                        self.known[key] = answer
                        # The line break comes first, so that a line that was cut off does not damage the next one.
                        journal.write("\n" + json.dumps([key, answer], ensure_ascii=False))
                self.asked += len(chunk)
                bar.update(len(chunk))
        return [self.known[key] for key in keys]

    def _answers(self, kind: str, requests: list[Instance]) -> list[Any]:
        """As `_ask`; the stops of a task apply to an answer only after thinking has ended."""
        if kind != "generate_until" or not (self.stop or self.thinking):
            return self._ask(kind, requests)
        stops = []
        for number, request in enumerate(requests):
            context, given = request.args
            until = [given["until"]] if isinstance(given.get("until"), str) else list(given.get("until") or [])
            stops.append([*until, *([self.stop] if self.stop else [])])
            more: dict[str, Any] = {"until": stops[-1]}
            if self.thinking:
                given = dict(normalize_gen_kwargs(given, self.inner.max_gen_toks))  # one name for the length
                more = {"until": [], "max_gen_toks": given["max_gen_toks"] + self.thinking}
            requests[number] = replace(request, arguments=(context, {**given, **more}))
        answers = self._ask(kind, requests)
        for number, until in enumerate(stops):
            for stop in until if self.thinking else ():
                answers[number] = answers[number].partition(stop)[0]
        return answers

    def _too_long(self, kind: str, request: Instance) -> bool:
        """Whether a prompt and its answer are longer than the model's context. `UserError` if the answer alone may be:
        lm-eval would stop at an assertion."""
        limit: int | None = getattr(self.inner, "max_length", None)
        if limit is None:
            return False
        text, room = "".join(map(str, request.args)), limit + 1  # of a likelihood, the last token is not passed
        if kind == "generate_until":
            text, given = request.args
            answer = normalize_gen_kwargs(given, self.inner.max_gen_toks)["max_gen_toks"] + self.thinking
            room = limit - answer
            if room <= 0:
                advice = "lower --thinking_tokens" if self.thinking else "choose another task, or another model"
                raise UserError(
                    f"{request.task_name}: answers of {answer} tokens do not fit into the model's context of {limit} "
                    f"tokens; {advice}."
                )
        return len(text.encode()) > room and len(self.inner.tok_encode(text)) > room  # a token has a byte or more

    def _ask(self, kind: str, requests: list[Instance]) -> list[Any]:
        @find_executable_batch_size(starting_batch_size=self.size, reduce_batch_size_fn=lambda: self.size // 2)
        def run(batch_size: int) -> list[Any]:
            self.size = batch_size
            if hasattr(self.inner, "batch_size_per_gpu"):
                self.inner.batch_size_per_gpu = batch_size
            if isinstance(self.inner, HFLM):
                return getattr(self.inner, kind)(requests, disable_tqdm=True)
            return getattr(self.inner, kind)(requests)

        try:
            return run()
        except RuntimeError as error:
            if "No executable batch size" in str(error):
                raise UserError(
                    f"{requests[0].task_name}: a single row does not fit in memory; use a smaller dtype or model."
                ) from error
            raise


def _check_number(request: Instance, answer: Any) -> None:
    if not isinstance(answer, str) and not math.isfinite(float(answer[0])):
        raise UserError(
            f"{request.task_name}: item {request.doc_id}: the model gives {answer[0]} as a log-likelihood; its "
            "weights or its dtype are broken. What was scored before is kept."
        )


class AnsweringLM(HFLM):
    """An `HFLM` that removes thinking from answers; `thoughts` is None for a model that does not think."""

    def __init__(
        self, model: Any, tokenizer: Any, chat: bool = False, thoughts: Thoughts | None = None, batch_size: int = 1
    ) -> None:
        beginning = {"add_bos_token": False} if chat else {}  # as in training; the template adds it, or there is none
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, **beginning)
        self.thoughts = thoughts

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
        if self.thoughts is not None and skip_special_tokens:
            return self.thoughts.answer(tokens, self.tokenizer).lstrip()
        return str(super().tok_decode(tokens, skip_special_tokens=skip_special_tokens))


class ConnectedLM(AnsweringLM):
    """A connected model whose connection needs the end of the prompt.

    Tokens and stop rules are those of `HFLM`; the context is the prompt, the continuation its answer. If both do not
    fit, the context loses one token more than in `HFLM`, because the last token of the answer is passed too.
    """

    in_reference_language = False  # such items take no part in an adaptive connection

    def __init__(self, connected: ConnectedModel, tokenizer: Any, **options: Any) -> None:
        super().__init__(connected.model, tokenizer, **options)
        self.connected = connected

    def _connect(self, rows: int) -> Tensor:
        return torch.full((rows,), not self.in_reference_language, device=self.device)

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        results: list[tuple[float, bool]] = []
        for start in range(0, len(requests), self.batch_size):
            results += self._likelihoods([one[1:] for one in requests[start : start + self.batch_size]])
        return results

    def _likelihoods(self, batch: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        longest = max(len(answer) for _, answer in batch)
        if longest >= self.max_length:
            raise UserError(f"an answer of {longest} tokens exceeds the model's {self.max_length} positions.")
        rows = [torch.tensor([*prompt, *answer][-self.max_length :]) for prompt, answer in batch]
        ends = [len(row) - len(answer) for row, (_, answer) in zip(rows, batch, strict=True)]
        ids = pad_sequence(rows, batch_first=True).to(self.device)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(self.device)
        lengths = torch.tensor(ends, device=self.device)
        logits = self.connected(ids, mask, prompt_lengths=lengths, connect=self._connect(len(rows))).logits
        results = []
        for number, (row, end) in enumerate(zip(rows, ends, strict=True)):
            scores = logits[number, end - 1 : len(row) - 1].float().log_softmax(dim=-1)
            wanted = row[end:].to(scores.device)
            value = scores.gather(1, wanted[:, None]).sum().item()
            results.append((value, bool((scores.argmax(dim=-1) == wanted).all())))
        return results

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        if not options.get("do_sample"):
            options = {**options, "do_sample": False}
            options.pop("temperature", None)
        return self.connected.generate(
            context,
            max_length=max_length,
            pad_token_id=self.tokenizer.pad_token_id,
            # lm-eval's criteria, since transformers' stop_strings fails on vocabularies of whole words.
            stopping_criteria=stop_sequences_criteria(self.tokenizer, stop, context.shape[1], len(context)),
            connect=self._connect(len(context)),
            **options,
        )


def language_model(loaded: Loaded, mode: str, encoder: Encoder) -> AnsweringLM:
    """The model for lm-eval, which stops where the chat template ends a turn. In mode `bypass`, the caller disables
    the connection."""
    tokenizer, connected = encoder.tokenizer, loaded.connected
    if encoder.chat:
        stops = stop_tokens(encoder, unwrap(loaded.model))
        for model in (loaded.model, unwrap(loaded.model)):
            if stops and model.generation_config is not None:
                model.generation_config.eos_token_id = stops
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked, so any id will do
    how: dict[str, Any] = {"chat": encoder.chat, "thoughts": Thoughts.of(encoder)}
    if connected is not None and mode == "student" and not connected.config.mergeable:
        return ConnectedLM(connected, tokenizer, **how)
    return AnsweringLM(loaded.model, tokenizer, **how)
