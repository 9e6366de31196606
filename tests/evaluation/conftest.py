"""A data directory and a tiny model, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.world import write_model
from tests.evaluation.data import data_directory


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return data_directory(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny", max_position_embeddings=512)
