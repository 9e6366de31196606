"""A running server, and a translator that asks it."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from cctuning.pairing.translation import open_translator
from cctuning.pairing.translation.translator import CACHE
from tests.pairing.translation.server import Server


def count(folder):
    """The number of answers in a cache."""
    with closing(sqlite3.connect(folder / CACHE)) as file:
        return file.execute("SELECT count(*) FROM answers").fetchone()[0]


@pytest.fixture
def server():
    with Server() as running:
        yield running


@pytest.fixture
def chat(server, tmp_path):
    """Open translators on the server; closed at the end."""
    opened = []

    def make(**options):
        options = {"base_url": server.url, "model": "tiny", "timeout": 10.0, **options}
        opened.append(open_translator({"engine": "chat", **options}, tmp_path / "cache"))
        return opened[-1]

    yield make
    for translator in opened:
        translator.close()
