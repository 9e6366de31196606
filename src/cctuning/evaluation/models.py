"""A model as lm-eval asks it: each answer kept as it comes, so that a stopped run repeats nothing.

`Journal` stands before any lm-eval model. `ConnectedLM` is the model where a plain forward is not enough: a connection
that must know where the prompt ends, or that is handed the prompt's English parallel.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import find_executable_batch_size
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from cctuning.errors import UserError
from cctuning.model.connected import ConnectedModel

CHUNK = 8  # batches between two writes to the journal: little is lost, and the GPU is not kept waiting
FIRST_BATCH = {"cpu": 16}  # tokens of memory are not the limit there; elsewhere start at 64 and halve while it fails


class Journal(LM):
    """An lm-eval model whose answers are written down (JSON lines) and not asked for twice.

    Args:
        inner: the model; `batch_size_per_gpu` is set to what fits.
        path: the journal; read if it is there.
        batch_size: rows at once; None: found by halving while memory runs out.
        reference: task and item to the text of the prompt's parallel, or None.
    """

    def __init__(
        self,
        inner: Any,
        path: Path,
        batch_size: int | None = None,
        reference: Callable[[str, int], str | None] | None = None,
    ) -> None:
        super().__init__()
        self.inner, self.path, self.reference = inner, path, reference
        device = getattr(getattr(inner, "device", None), "type", "cpu")
        self.size = batch_size or FIRST_BATCH.get(device, 64)
        self.asked = 0  # requests that the model really ran
        self.label = ""  # put before the progress bar: which task of how many
        self.known: dict[str, Any] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    key, answer = json.loads(line)
                except (ValueError, TypeError):
                    continue  # half a line, cut off with the run
                self.known[key] = answer

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        answers = self._through("loglikelihood", requests)
        return [(float(value), bool(greedy)) for value, greedy in answers]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return self._through("generate_until", requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise UserError("loglikelihood_rolling: no benchmark here asks for it.")

    @property
    def tokenizer_name(self) -> str:
        return self.inner.tokenizer_name

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.inner.apply_chat_template(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.inner.chat_template(chat_template)

    def _reference(self, request: Instance) -> str | None:
        if self.reference is None:
            return None
        return self.reference(str(request.task_name), request.doc_id or 0)

    def _key(self, kind: str, request: Instance) -> str:
        text = json.dumps([kind, *request.args, self._reference(request)], ensure_ascii=False, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _through(self, kind: str, requests: list[Instance]) -> list[Any]:
        keys = [self._key(kind, request) for request in requests]
        pending = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.known}
        # The longest first: what does not fit fails at once, and the time left is overestimated, not underestimated.
        order = sorted(pending, key=lambda key: -len("".join(str(part) for part in pending[key].args)))
        bar = tqdm(
            total=len(keys),
            initial=len(keys) - len(order),
            desc=f"{self.label}{requests[0].task_name}",
            unit="req",
            disable=False,  # lm-eval's own bars are off (TQDM_DISABLE); this one says what they would
        )
        start = 0
        with bar, self.path.open("a", encoding="utf-8") as journal:
            while start < len(order):
                chunk = order[start : start + CHUNK * self.size]
                answers = self._ask(kind, [pending[key] for key in chunk])
                for key, answer in zip(chunk, answers, strict=True):
                    _check_number(pending[key], answer)
                    self.known[key] = answer
                    journal.write(json.dumps([key, answer], ensure_ascii=False) + "\n")
                journal.flush()
                start += len(chunk)
                self.asked += len(chunk)
                bar.update(len(chunk))
        return [self.known[key] for key in keys]

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
                    f"{requests[0].task_name}: one row alone does not fit in memory; use a smaller dtype or model."
                ) from error
            raise


def _check_number(request: Instance, answer: Any) -> None:
    if not isinstance(answer, str) and not math.isfinite(float(answer[0])):
        raise UserError(
            f"{request.task_name}: item {request.doc_id}: the model gives {answer[0]} as a log-likelihood; its "
            "weights or its dtype are broken. What was scored before is kept."
        )


class ConnectedLM(HFLM):
    """A connected model as it runs where the prompt's end matters, or over the live connection.

    Same tokens, truncation and stop rules as `HFLM`; the context is the prompt, the continuation its answer.
    """

    reference: Callable[[str, int], str | None] | None = None

    def __init__(self, connected: ConnectedModel, tokenizer: Any, batch_size: int = 1) -> None:
        super().__init__(pretrained=connected.model, tokenizer=tokenizer, batch_size=batch_size)
        self.connected = connected

    def _references(self, requests: list[Instance]) -> dict[str, Tensor]:
        if self.reference is None:
            return {}
        texts = [self.reference(str(request.task_name), request.doc_id or 0) for request in requests]
        given = [torch.tensor(self.tok_encode(text)) for text in texts if text]
        index = torch.tensor([-1 if not text else 0 for text in texts])
        index[index >= 0] = torch.arange(len(given))
        if not given:
            return {}
        ids = pad_sequence(given, batch_first=True)
        mask = pad_sequence([torch.ones_like(one) for one in given], batch_first=True)
        return {
            "reference_input_ids": ids.to(self.device),
            "reference_attention_mask": mask.to(self.device),
            "reference_index": index.to(self.device),
        }

    @torch.no_grad()
    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        results: list[tuple[float, bool]] = []
        for start in range(0, len(requests), self.batch_size):
            results += self._likelihoods(requests[start : start + self.batch_size])
        return results

    def _likelihoods(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        rows, ends = [], []
        for context, continuation in (request.args for request in requests):
            if context == "":
                prompt, answer = [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)
            else:
                prompt, answer = self._encode_pair(context, continuation)
            prompt = prompt[-max(1, self.max_length - len(answer)) :]
            rows.append(torch.tensor([*prompt, *answer][-self.max_length :]))
            ends.append(len(rows[-1]) - len(answer))
        ids = pad_sequence(rows, batch_first=True).to(self.device)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(self.device)
        lengths = torch.tensor(ends, device=self.device)
        logits = self.connected(ids, mask, prompt_lengths=lengths, **self._references(requests)).logits
        results = []
        for number, (row, end) in enumerate(zip(rows, ends, strict=True)):
            scores = logits[number, end - 1 : len(row) - 1].float().log_softmax(dim=-1)
            wanted = row[end:].to(scores.device)
            value = scores.gather(1, wanted[:, None]).sum().item()
            results.append((value, bool((scores.argmax(dim=-1) == wanted).all())))
        return results

    @torch.no_grad()
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        results = []
        for start in range(0, len(requests), self.batch_size):
            results += self._answers(requests[start : start + self.batch_size])
        return results

    def _answers(self, requests: list[Instance]) -> list[str]:
        options = dict(requests[0].args[1])
        until = [options["until"]] if isinstance(options.get("until"), str) else list(options.get("until") or [])
        new = int(options.get("max_gen_toks") or self.max_gen_toks)
        ids, mask = self.tok_batch_encode(
            [request.args[0] for request in requests], left_truncate_len=self.max_length - new
        )
        extra = {"stop_strings": until, "tokenizer": self.tokenizer} if until else {}
        tokens = self.connected.generate(
            ids.to(self.device),
            mask.to(self.device),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
            **extra,
            **self._references(requests),
        )
        texts = [self.tok_decode(row[ids.shape[1] :].tolist(), skip_special_tokens=True) for row in tokens]
        for stop in until:
            texts = [text.split(stop)[0] for text in texts]
        return texts
