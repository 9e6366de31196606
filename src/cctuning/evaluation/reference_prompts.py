"""Find each item's prompt in the reference language, for `--reference parallel`."""

from __future__ import annotations

from typing import Any

from cctuning.errors import UserError
from cctuning.evaluation.models import Journal
from cctuning.evaluation.suite_tasks import Item
from cctuning.languages import ENGLISH, language_name


def with_reference_prompts(items: list[Item], notes: list[str], language: str = ENGLISH) -> list[Item]:
    """The tasks whose items have a prompt in the reference `language`; notes name the others."""
    able = {item.benchmark for item in items if (item.parallel and item.language == language) or item.references}
    left = sorted({item.benchmark for item in items if item.benchmark not in able})
    name = language_name(language)
    if left:
        notes.append(
            f"--reference parallel: {', '.join(left)} left out: items are not parallel, choices contain the prompt, "
            f"or there is no {name}."
        )
    kept = [item for item in items if item.benchmark in able]
    if not kept:
        raise UserError(f"--reference parallel: no benchmark or row here has a prompt in {name}; name others.")
    return kept


class ReferencePrompts:
    """Reference prompts by task and item.

    Args:
        chat: prompts are rendered with the chat template.
        limit: items per task.
        language: the reference language.
    """

    def __init__(self, chat: bool, limit: int | None, language: str = ENGLISH) -> None:
        self.chat, self.limit, self.language = chat, limit, language
        self._by_key: dict[str, dict[Any, str]] = {}  # benchmark -> key of an item -> its reference prompt
        self._by_item: dict[tuple[str, int], str] = {}

    def __call__(self, task: str, place: int) -> str | None:
        """The reference prompt of an item, None if there is none."""
        return self._by_item.get((task, place))

    def add(self, item: Item, lm: Journal) -> list[str]:
        """Add the prompts of a task; the task in the reference language comes first.

        Returns:
            A note if items have none.
        """
        if item.references is not None:
            chat = self.chat and not item.rendered
            found = {place: lm.rendered(text, chat) for place, text in item.references.items()}
        elif item.language == self.language:
            self._by_key[item.benchmark] = self._prompts(item, lm)
            return []
        else:
            prompts, keys = self._by_key.get(item.benchmark, {}), item.keys()[: self.limit]
            found = {place: prompts[key] for place, key in enumerate(keys) if key in prompts}
        self._by_item |= {(item.name, place): text for place, text in found.items()}
        if item.references is not None or len(found) == len(keys):
            return []
        name = language_name(self.language)
        return [f"{item.name}: {len(keys) - len(found)} of {len(keys)} items have no {name} item of their id."]

    def _prompts(self, item: Item, lm: Journal) -> dict[Any, str]:
        """Key to prompt of each item, as the task renders it."""
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
