"""The notebook runs from top to bottom on a small model that is made here."""

from __future__ import annotations

import shutil

import nbformat
import pytest
from nbclient import NotebookClient

from tests.docs.small import NOTEBOOKS, small_model


def test_the_notebook_runs(tmp_path, monkeypatch):
    shutil.copytree(NOTEBOOKS, tmp_path / "notebooks")
    monkeypatch.setenv("MODEL", str(small_model(tmp_path / "model")))
    notebook = nbformat.read(NOTEBOOKS / "quickstart.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "notebooks")}}).execute()
    told = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert "fr: " in told and "of 18 right" in told
    assert "LlamaForCausalLM answers as the trained model: True" in told
    assert (tmp_path / "notebooks" / "models" / "topics" / "model.safetensors").is_file()


def test_the_notebook_names_no_path_of_a_machine():
    text = (NOTEBOOKS / "quickstart.ipynb").read_text(encoding="utf-8")
    assert not any(place in text for place in ("/tmp/", "/home/", "/work/", "/Users/"))


@pytest.mark.parametrize("name", ["english", "pairs", "held_out"])
def test_the_notebook_s_rows_are_read(name):
    from cctuning.data import load_parallel, load_rows

    path = str(NOTEBOOKS / "data" / f"{name}.jsonl")
    if name == "pairs":
        assert len(load_parallel([path])[0]) == 108
    else:
        rows, _ = load_rows([path], require_reference=False)
        assert len(rows) == {"english": 48, "held_out": 72}[name]
