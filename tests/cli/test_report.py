"""`cctuning report`: a page from real runs of a tiny model, and one line for everything that cannot be reported."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.cli.world import done, metrics, records, refused, run_json, write_jsonl, write_model, write_recipe
from tests.report.world import Look, write_evaluation

KINDS = {
    "cc": {"log_connection": True, "tune": "lora", "lora_rank": 4},
    "plain": {"connection": "none"},
    "dense": {"transform": "dense", "scope": "response"},
    "nonlinear": {"transform": "nonlinear", "paths": "both"},
    "align": {"paths": "student", "decision": "fixed", "decision_value": 1.0, "transform": "none"},
    "adaptive": {"connection": "adaptive"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base, rows in two languages, and runs by name, made when first asked for."""
    folder = tmp_path_factory.mktemp("report")
    base = write_model(folder / "base")
    rows = records(40)
    for place, row in enumerate(rows):
        if row["lang"] == "qaa" and place % 2:
            row["lang"] = "sw"
    data = write_jsonl(folder / "rows.jsonl", rows)

    def run(name):
        if not (folder / name).exists():
            recipe = write_recipe(folder / f"{name}.yaml", model=str(base), data=str(data), **KINDS[name])
            done("train", "--config", recipe, "--output_dir", folder / name)
        return folder / name

    run.folder, run.base, run.data = folder, base, data
    return run


def page(world, tmp_path, *argv):
    output = tmp_path / "page.html"
    done("report", *argv, "--output", output)
    return Look(output.read_text(encoding="utf-8"))


def copy(run, path):
    shutil.copytree(run, path)
    return path


def rewrite(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_the_whole_page(world, tmp_path):
    argv = [world("cc"), world("plain"), "--baseline", "plain", "--evaluation"]
    right = {"en": [1, 1, 0, 1] * 20, "sw": [0, 0, 0, 1] * 20, "qaa": [1, 0] * 40}
    better = right | {"sw": [1, 0, 1, 1] * 20}
    for name, model, flags in (("cc", "m", better), ("plain", "n", right), ("base", str(world.base), right)):
        argv.append(f"{name}={write_evaluation(tmp_path / f'e-{name}', model, flags)}")
    look = page(world, tmp_path, *argv)
    said = " ".join(look.text.split())
    assert (
        "cc against plain, paper MKQA: better in 1 of 2 languages (Swahili), worse in 0, not distinguishable in 1"
        in said
    )
    assert "English: cc 75.0 % after 75.0 % on paper MKQA" in said
    assert all(title in said for title in ("Results", "Gate", "Data", "Settings and versions"))
    assert look.levels[0] == 1 and all(b <= a + 1 for a, b in zip(look.levels, look.levels[1:], strict=False))
    pictures = [tag for tag, attributes in look.tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(pictures) == look.count("figure") == look.count("details") == look.count("title") - 1 > 5
    assert look.count("table") == look.count("caption") > len(pictures)
    assert look.count("article") == 3 and "<" not in look.text and "class=" not in look.text
    assert not [tag for tag, _ in look.tags if tag in ("script", "img", "iframe", "object")]
    assert not [
        value
        for _, attributes in look.tags
        for value in (attributes.get("href"), attributes.get("src"))
        if value and value[0] not in "#d"
    ]


def test_the_gate_is_logged_by_layer_where_it_is_asked_for(world, tmp_path):
    logged = metrics(world("cc"))
    shares = [line["decision_layer_01"] for line in logged if "decision_layer_01" in line]
    assert len(shares) >= 5 and all(0.1 < share < 0.14 for share in shares)  # it starts at sigmoid(-2) = 0.119
    for line in logged:
        if "decision" in line:
            both = (line["decision_layer_00"] + line["decision_layer_01"]) / 2
            assert both == pytest.approx(line["decision"], rel=1e-4)
    assert not any("decision_layer" in key for line in metrics(world("dense")) for key in line)
    said = page(world, tmp_path, world("cc")).text
    assert "Share of the reference, mean over layers: 0.1" in said and "layer 1" in said
    assert "Train with log_connection: true" in page(world, tmp_path / "..", world("dense")).text


@pytest.mark.parametrize("name", [name for name in KINDS if name != "cc"])
def test_every_kind_of_run_has_a_page(world, tmp_path, name):
    said = " ".join(page(world, tmp_path, world(name)).text.split())
    assert "Cost of each run" in said and "Loss" in said
    assert ("0 (can be merged)" in said) is False
    if name in ("dense", "nonlinear", "adaptive"):
        assert "parameters added at inference 0" not in said


def test_what_comes_from_files_is_escaped(world, tmp_path):
    evil = "<script>alert(1)</script>\"'&"
    run = copy(world("cc"), tmp_path / "run")
    rewrite(run / "run.json", lambda record: record["notes"].append(evil))
    flags = {"en": [1, 0], "sw": [1, 1]}
    evaluations = [
        f"{name}={write_evaluation(tmp_path / name, 'm', flags, prompt=evil.replace('{', ''))}" for name in ("a", "b")
    ]
    output = tmp_path / "page.html"
    argv = [f"{evil[:8]}={run}"]
    done("report", *argv, "--evaluation", *evaluations, "--output", output)
    raw = output.read_text(encoding="utf-8")
    look = Look(raw)
    assert evil in look.text  # shown as it is
    assert "<script" not in raw and look.count("script") == 0


def test_a_run_that_is_no_run(world, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    output = ("--output", tmp_path / "page.html")
    assert "no such directory" in refused(capsys, "report", tmp_path / "none", *output)
    assert "no run.json there" in refused(capsys, "report", tmp_path / "empty", *output)

    def broken(name, change):
        run = copy(world("cc"), tmp_path / name)
        change(run)
        message = refused(capsys, "report", run, *output)
        assert str(run) in message
        return message

    def record(**values):
        return lambda run: rewrite(run / "run.json", lambda one: one.update(values))

    def put(file, text):
        return lambda run: (run / file).write_text(text)

    assert "has not finished (status 'running')" in broken("running", record(status="running"))
    assert "has not finished (status 'stopped')" in broken(
        "stopped", record(status="stopped", error="step 3: the loss is nan")
    )
    message = broken("version", record(steps=None, versions={"cc-tuning": "0.0.7"}))
    assert "steps is missing" in message and "written by cc-tuning 0.0.7, this is" in message
    assert "cannot be read" in broken("half", put("run.json", '{"status": "fin'))
    lines = (world("cc") / "metrics.jsonl").read_text()
    assert "metrics.jsonl: cannot be read" in broken("cut", put("metrics.jsonl", lines[: lines.rindex("epoch")]))
    assert "cannot be read" in broken("config", lambda run: (run / "config.yaml").unlink())
    weights = "model/adapter_model.safetensors"
    assert "damaged safetensors" in broken("weights", lambda run: (run / weights).write_bytes(b"\x10"))
    file = "model/connection_config.json"
    newer = broken("format", lambda run: rewrite(run / file, lambda one: one.update(format=2)))
    assert "format 2, this version reads 1" in newer
    assert not (tmp_path / "page.html").exists()


def test_other_bad_input(world, tmp_path, capsys):
    run, output = world("cc"), ("--output", tmp_path / "page.html")
    assert "both would be called 'a'" in refused(capsys, "report", f"a={run}", f"a={world('plain')}", *output)
    assert "no directory" in refused(capsys, "report", run, "--output", tmp_path / "no" / "page.html")
    (tmp_path / "there.html").write_text("kept")
    assert "exists already" in refused(capsys, "report", run, "--output", tmp_path / "there.html")
    assert (tmp_path / "there.html").read_text() == "kept"
    assert "name them with --evaluation" in refused(capsys, "report", run, "--baseline", "x", *output)
    assert "two or more systems" in refused(
        capsys, "report", run, "--evaluation", write_evaluation(tmp_path / "e", "m", {"en": [1]}), *output
    )
    french = copy(run, tmp_path / "fr")
    rewrite(french / "run.json", lambda record: record.update(reference_language="fr"))
    assert "reference languages differ" in refused(capsys, "report", run, french, *output)
    assert run_json(run)["status"] == "finished" and not (tmp_path / "page.html").exists()
