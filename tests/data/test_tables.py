"""Arrow files of rows are removed when a process ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LOAD = """
import os, sys
from cctuning.data import load_rows
from cctuning.errors import UserError
try:
    rows, _ = load_rows([sys.argv[1]])
    assert rows[0]["prompt"] == "a"
except UserError:
    pass
print(sorted(os.listdir(os.environ["TMPDIR"])), flush=True)
if sys.argv[2] == "raise":
    raise SystemExit(3)
"""


def load(rows, end: str, temporary) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LOAD, str(rows), end]
    env = os.environ | {"TMPDIR": str(temporary)}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("response", "end", "code"), [("b", "", 0), ("b", "raise", 3), (7.5, "", 0)])
def test_nothing_is_left(response, end, code, tmp_path):
    temporary, rows = tmp_path / "temporary", tmp_path / "rows.jsonl"
    temporary.mkdir()
    rows.write_text(f'{{"prompt": "a", "response": "{response}", "lang": "en"}}\n' + "{" * (response == 7.5))
    done = load(rows, end, temporary)
    assert done.returncode == code, done.stderr
    assert "cctuning-rows-" in done.stdout and not list(temporary.iterdir())
