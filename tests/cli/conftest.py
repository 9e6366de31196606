"""A base, rows and a recipe that many tests of the command line share."""

from __future__ import annotations

import pytest

from tests.cli.world import records, write_jsonl, write_model, write_recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("data") / "rows.jsonl", records())


@pytest.fixture
def recipe(tmp_path, base, data):
    return write_recipe(tmp_path / "recipe.yaml", model=str(base), data=[str(data)])
