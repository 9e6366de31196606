"""`profile_steps`: a trace that anyone can open, and training that is not changed by it."""

from __future__ import annotations

import json

import pytest

from cctuning import UserError
from tests.training.test_trainer import config, trainer


def test_trace_of_some_steps(tmp_path):
    made = trainer(tmp_path / "run", profile_steps=2, max_steps=6)
    made.train()
    trace = json.loads((tmp_path / "run" / "trace.json").read_text())
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    steps = {event["name"] for event in events if event["name"].startswith("ProfilerStep")}
    assert steps == {"ProfilerStep#2", "ProfilerStep#3"}
    assert sum(event["name"] == "aten::linear" for event in events) > 10
    assert "w1" not in {event["name"] for event in events}


def test_run_shorter_than_its_trace(tmp_path):
    trainer(tmp_path / "run", profile_steps=5, max_steps=1).train()
    assert json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"]


def test_off_by_default_and_checked(tmp_path):
    trainer(tmp_path / "run", max_steps=1).train()
    assert not (tmp_path / "run" / "trace.json").exists()
    with pytest.raises(UserError, match="profile_steps: expected at least 0"):
        config(tmp_path, profile_steps=-1)
