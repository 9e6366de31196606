"""`--reference parallel`: which items have a parallel among the benchmark's own, and what it is."""

from __future__ import annotations

from typing import Any

from cctuning.errors import UserError
from cctuning.evaluation.models import Journal
from cctuning.evaluation.suites import Item
from cctuning.languages import ENGLISH, language_name


def with_parallels(items: list[Item], notes: list[str], language: str = ENGLISH) -> list[Item]:
    """The tasks whose items are the same in every language, with the reference `language` among them."""
    able = {item.benchmark for item in items if (item.parallel and item.language == language) or item.references}
    left = sorted({item.benchmark for item in items if item.benchmark not in able})
    if left:
        notes.append(
            f"--reference parallel: {', '.join(left)} left out: items are not parallel, the prompt is inside the "
            f"choices, or there is no {language_name(language)}."
        )
    kept = [item for item in items if item.benchmark in able]
    if not kept:
        raise UserError(
            f"--reference parallel: no benchmark or row here has a parallel prompt in {language_name(language)}; "
            "name others."
        )
    return kept


class Parallels:
    """(task, item) -> the prompt's parallel as the model is asked it; None where there is none.

    Args:
        chat: prompts are rendered with the chat template.
        limit: items asked of each task.
        language: the reference language, which parallels are in.
    """

    def __init__(self, chat: bool, limit: int | None, language: str = ENGLISH) -> None:
        self.chat, self.limit, self.language = chat, limit, language
        self._asked: dict[str, dict[Any, str]] = {}  # benchmark -> item's key -> its prompt
        self._known: dict[tuple[str, int], str] = {}

    def __call__(self, task: str, place: int) -> str | None:
        return self._known.get((task, place))

    def add(self, item: Item, lm: Journal) -> list[str]:
        """Make the parallels of a task's items known, the reference language's first; notes on those without one."""
        notes = []
        if item.references is not None:
            chat = self.chat and not item.rendered
            found = {place: lm.rendered(text, chat) for place, text in item.references.items()}
        elif item.language == self.language:
            self._asked[item.benchmark] = self._prompts(item, lm)
            found = {}
        else:
            there, keys = self._asked.get(item.benchmark, {}), item.keys()[: self.limit]
            found = {place: there[key] for place, key in enumerate(keys) if key in there}
            if len(found) < len(keys):
                lacking = len(keys) - len(found)
                name = language_name(self.language)
                notes.append(f"{item.name}: {lacking} of {len(keys)} items have no {name} item of their id.")
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
