"""`make demo`: without Gemma's terms the made-up world runs, and what is there is kept."""

from __future__ import annotations

import io

import pytest

from experiments.real import demo


@pytest.fixture
def called(monkeypatch):
    """The commands that were run."""
    commands = []

    def run(command):
        commands.append(command)
        return 0

    monkeypatch.setattr(demo, "cctuning", run)
    return commands


def test_without_terms_the_made_up_world_runs(called, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "available", lambda base: False)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # no terminal: nobody is asked
    assert demo.demo(tmp_path, []) == 0
    assert called == [["demo", "--output", str(tmp_path)]]
    said = capsys.readouterr().out
    assert "Gemma Terms of Use" in said and "make demo ACCEPT=gemma-3-270m" in said
