"""The output directory: whole or not there; and the card."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from decimal import Decimal

import datasets
import pytest

from cctuning.data import Encoder, load_parallel, load_rows
from cctuning.errors import UserError
from cctuning.pairing import output
from cctuning.pairing.benchmarks import Benchmarks
from tests.data.test_chat import tokenizer
from tests.data.test_turns import runs
from tests.pairing.world import CHINESE, ENGLISH, SWAHILI, lines, paired, run, write

CONVERSATION = [("user", "Mji mkuu wa Kenya ni upi?"), ("assistant", "Mji mkuu ni Nairobi.")]
CONVERSATION += [
    ("user", "Na wa Uganda?"),
    ("assistant", "Ni Kampala."),
    ("user", "Asante."),
    ("assistant", "Karibu."),
]
OFF = {"check_language": 0, "check_duplicates": False, "check_copy": 0, "check_numbers": False}


@pytest.fixture
def source(tmp_path):
    rows = [*paired(), *paired(CHINESE), {"lang": "sw", "prompt": "Habari?"}, {"lang": "sw"}]
    return {"path": write(tmp_path / "rows.jsonl", rows), "way": "given"}


def beside(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("."))


def test_the_card_counts_what_there_is(tmp_path, source):
    card, _, rejects = run(tmp_path, source)
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"rows.jsonl", "rejects.jsonl", "card.json", "card.md"}
    assert card == json.loads((out / "card.json").read_text(encoding="utf-8"))
    assert (card["rows"], card["with_response"], card["parallels"], card["rejected_rows"]) == (6, 6, 4, 2)
    assert card["languages"] == {"sw": 4, "zh": 2} and card["rejected"] == {"row": 2}
    assert card["sources"][0]["read"] == 8 and card["sources"][0]["rejected"] == {"row": 2}
    for name, told in card["files"].items():
        assert told == "sha256:" + hashlib.sha256((out / name).read_bytes()).hexdigest()
    table = (out / "card.md").read_text(encoding="utf-8")
    assert "| sw | 4 |" in table and "| row | 2 |" in table
    assert [reject["origin"].rpartition(":")[2] for reject in rejects] == ["7", "8"]
    assert "no parallel" in rejects[0]["says"] and rejects[0]["row"] == {"lang": "sw", "prompt": "Habari?"}


def test_a_conversation_keeps_its_answers(tmp_path):
    """All that carry a loss before, and none that does not, also inside a prompt."""
    turns = [{"role": role, "content": text} for role, text in CONVERSATION]
    english = [{"role": role, "content": f"English of {text}"} for role, text in CONVERSATION[:5]]
    rows = [{"messages": turns}, {"messages": [turns[0], {**turns[1], "train": False}, *turns[2:]]}]
    rows.append({"prompt": turns[:5], "response": turns[5]["content"]})
    path = write(tmp_path / "rows.jsonl", [{**row, "messages_en": english, "lang": "sw"} for row in rows])
    run(tmp_path, {"path": path, "way": "given"}, checks=OFF)
    assert len(lines(tmp_path / "out" / "rows.jsonl")) == 3
    before, after = ([*load_rows([name])[0]] for name in (path, str(tmp_path / "out" / "rows.jsonl")))
    made = tokenizer("qwen2_5")
    learned = [[runs(found, made) for found in Encoder(made, chat=True).encode(kind)] for kind in (before, after)]
    assert learned[0] == learned[1] and [len(texts) for texts in learned[0]] == [3, 2, 1]


def test_the_folder_is_read_as_its_rows_are(tmp_path, source):
    """Not its card and its rejects."""
    _, kept, _ = run(tmp_path, source)
    out = str(tmp_path / "out")
    (tmp_path / "out" / "rejects.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SWAHILI))
    assert load_rows([out])[0]["prompt"][:] == load_parallel([out])[0]["text"][:] == [row["prompt"] for row in kept]
    assert {*Benchmarks.read([out]).fingerprints} == {f"{out}/rows.jsonl"}


def test_a_run_without_a_row_is_given_again(tmp_path, source):
    good = (tmp_path / "rows.jsonl").read_text()
    write(tmp_path / "rows.jsonl", [{"lang": "sw"}])
    with pytest.raises(UserError, match="no row is left"):
        run(tmp_path, source)
    (tmp_path / "rows.jsonl").write_text(good)
    assert len(run(tmp_path, source)[1]) == 6


def test_an_output_under_a_file_is_one_line(tmp_path, source):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file/out: cannot be made"):
        run(tmp_path, source, output=str(tmp_path / "file" / "out"))


def test_the_same_again_is_the_same(tmp_path, source):
    (tmp_path / "two").mkdir()
    first, second = run(tmp_path, source)[0], run(tmp_path / "two", source)[0]
    assert first["files"] == second["files"]


def test_an_output_that_exists_is_replaced_where_that_is_asked_for_alone(tmp_path, source):
    run(tmp_path, source)
    with pytest.raises(UserError, match="holds a finished run"):
        run(tmp_path, source)
    write(tmp_path / "rows.jsonl", paired()[:1])
    assert len(run(tmp_path, source, overwrite=True)[1]) == 1
    (tmp_path / "out" / "card.json").unlink()
    with pytest.raises(UserError, match="was not written by `cctuning pair`"):
        run(tmp_path, source, overwrite=True)
    assert beside(tmp_path) == []


def test_bad_input_leaves_nothing(tmp_path, source):
    with pytest.raises(UserError, match="no such file"):
        run(tmp_path, source, {**source, "path": str(tmp_path / "absent.jsonl")})
    assert not (tmp_path / "out").exists() and beside(tmp_path) == []


def test_where_no_row_is_left_the_rejects_are(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"lang": "sw", "prompt": row["prompt"]} for row in SWAHILI])
    with pytest.raises(UserError, match=r"no row is left \(row 4\)"):
        run(tmp_path, {"path": path, "way": "given"})
    assert len(lines(tmp_path / "out" / "rejects.jsonl")) == 4


@pytest.mark.parametrize("key", [datetime(2024, 1, 2), Decimal("1.50"), b"a", [datetime(2024, 1, 2)]])
def test_rejects_hold_what_parquet_has_types_for_and_json_has_not(key, tmp_path):
    rows = [{**row, "id": key if row["id"] == 1 else None} for row in SWAHILI]
    english = [{**row, "id": key if row["id"] == 1 else None} for row in ENGLISH]
    for name, table in (("sw", rows), ("en", english)):
        datasets.Dataset.from_list(table).to_parquet(str(tmp_path / f"{name}.parquet"))
    source = {"path": str(tmp_path / "sw.parquet"), "way": "join", "english": str(tmp_path / "en.parquet")}
    _, kept, rejects = run(tmp_path, source, {**source, "english": write(tmp_path / "en.jsonl", ENGLISH)})
    assert [row["prompt_en"] for row in kept] == [ENGLISH[0]["prompt"]] and len(rejects) == 7
    assert rejects[3]["row"]["id"] in (str(key), [str(key[0])] if isinstance(key, list) else None)


def test_two_runs_to_one_place_do_not_mix(tmp_path):
    with output.draft(tmp_path / "out") as first, output.draft(tmp_path / "out") as second:
        (first / "x").write_text("x")
        (second / "y").write_text("y")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"] and beside(tmp_path) == []


SLOW = """
import time, sys
from cctuning.cli import main
def translate(texts, source, target):
    open(sys.argv[1] + "/begun", "w").close()
    time.sleep(60)
if __name__ == "__main__":
    sys.modules["slow"] = sys.modules["__main__"]
    folder = sys.argv[1]
    sys.exit(main(["pair", folder + "/rows.jsonl", "--translate", "function", "function=slow:translate", "--output",
                   folder + "/out", "--cache_dir", folder + "/cache"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_nothing_half_written(number, tmp_path):
    write(tmp_path / "rows.jsonl", SWAHILI)
    (tmp_path / "slow.py").write_text(SLOW, encoding="utf-8")
    run_ = subprocess.Popen(
        [sys.executable, tmp_path / "slow.py", tmp_path],
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts tests in the background has them ignore it, and their children too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 120
    while not (tmp_path / "begun").exists() and run_.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    assert (tmp_path / "begun").exists(), run_.stderr.read() if run_.poll() is not None else "did not begin"
    os.kill(run_.pid, number)
    said = run_.communicate(timeout=60)[1]
    assert not (tmp_path / "out").exists()
    if number == signal.SIGINT:
        assert run_.returncode == 130 and "Traceback" not in said and beside(tmp_path) == []
    else:  # what is left does not disturb the next run to the same place
        _, kept, _ = run(tmp_path, {"path": write(tmp_path / "p.jsonl", paired()), "way": "given"})
        assert len(kept) == 4


def test_pairing_of_files_imports_no_torch() -> None:
    """Every process holds what it imports: torch, datasets and their like are 200 MB each time."""
    heavy = ("torch", "transformers", "datasets", "pyarrow", "pandas")
    code = (
        f"import sys, cctuning.cli.pair, cctuning.pairing.run; sys.exit(str([n for n in {heavy} if n in sys.modules]))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    assert said.strip() == "[]"
