"""`--reference parallel`: which items have an English parallel among the benchmark's own, and what it is."""

from __future__ import annotations

from typing import Any

from cctuning.errors import UserError
from cctuning.evaluation.models import Journal
from cctuning.evaluation.suites import Item


def with_parallels(items: list[Item], notes: list[str]) -> list[Item]:
    """The tasks whose items are the same in every language, with English among them."""
    able = {item.benchmark for item in items if (item.parallel and item.language == "en") or item.references}
    left = sorted({item.benchmark for item in items if item.benchmark not in able})
    if left:
        notes.append(
            f"--reference parallel: {', '.join(left)} left out: items are not parallel, the prompt is inside the "
            "choices, or there is no English."
        )
    kept = [item for item in items if item.benchmark in able]
    if not kept:
        raise UserError("--reference parallel: no benchmark here has parallel prompts in English; name others.")
    return kept


class Parallels:
    """(task, item) -> the prompt's English parallel as the model is asked it; None where there is none.

    Args:
        chat: prompts are rendered with the chat template.
        limit: items asked of each task.
    """

    def __init__(self, chat: bool, limit: int | None) -> None:
        self.chat, self.limit = chat, limit
        self._english: dict[str, dict[Any, str]] = {}  # benchmark -> item's key -> its prompt
        self._known: dict[tuple[str, int], str] = {}

    def __call__(self, task: str, place: int) -> str | None:
        return self._known.get((task, place))

    def add(self, item: Item, lm: Journal) -> list[str]:
        """Make the parallels of a task's items known, English before other languages; notes on those without one."""
        notes = []
        if item.references is not None:
            found = {place: lm.rendered(text, self.chat) for place, text in item.references.items()}
        elif item.language == "en":
            self._english[item.benchmark] = self._prompts(item, lm)
            found = {}
        else:
            there, keys = self._english.get(item.benchmark, {}), item.keys()[: self.limit]
            found = {place: there[key] for place, key in enumerate(keys) if key in there}
            if len(found) < len(keys):
                lacking = len(keys) - len(found)
                notes.append(f"{item.name}: {lacking} of {len(keys)} items have no English item of their id.")
        self._known |= {(item.name, place): text for place, text in found.items()}
        return notes

    def _prompts(self, item: Item, lm: Journal) -> dict[Any, str]:
        """Each item's key to its prompt, as the task asks it."""
        item.task.build_all_requests(
            rank=0,
            world_size=1,
            apply_chat_template=self.chat,
            fewshot_as_multiturn=self.chat,
            chat_template=lm.apply_chat_template if self.chat else None,
            tokenizer_name=lm.tokenizer_name if self.chat else "",
        )
        keys = item.keys()
        return {keys[int(one.doc_id)]: one.args[0] for one in item.task.instances}
