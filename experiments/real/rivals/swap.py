"""Layer swapping (Bandarkar et al. 2024, arXiv 2410.01335): the outer layers of a language expert in a task expert.

Two models are tuned from one base: the task expert on the English rows, the language expert on text of the languages
(here language modelling of the parallel text's own side). The result has the language expert's first and last layers
and the task expert's between them. In the paper a handful of layers at either end; here a sixth of all at either end.
Embeddings are the base's in both, as everywhere in this lab.
"""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

from experiments.real.recipes import Job, first_options, plain_texts, tune
from experiments.real.worlds import ENGLISH

OUTER = 6  # one part in this many is swapped at either end


def swap(job: Job) -> PreTrainedModel:
    """The whole recipe."""
    start = copy.deepcopy(job.model)
    task = tune(job, job.model, "task", job.rows())
    texts = [row for row in plain_texts(job) if row["lang"] != ENGLISH]
    job.rng.shuffle(texts)
    language = tune(job, start, "language", texts, given=first_options(job))
    swap_layers(task, language, len(task.model.layers) // OUTER)
    return task


@torch.no_grad()
def swap_layers(task: PreTrainedModel, language: PreTrainedModel, outer: int) -> None:
    """Give `task` the first and last `outer` layers of `language`."""
    layers = len(task.model.layers)
    for number in (*range(outer), *range(layers - outer, layers)):
        task.model.layers[number].load_state_dict(language.model.layers[number].state_dict())
