"""Cells end to end on a base of a few thousand weights: kept, resumed, refused; and the queue of a plan."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cctuning.errors import UserError
from experiments.real import bases, plans, recipes, registry, run, text
from experiments.real.bases import Base
from experiments.real.cells import Lab, cell_of
from experiments.real.gpu.build import _distributed
from experiments.real.gpu.workers import Queue, resolved, work
from experiments.real.page import page
from experiments.real.text import checked, chosen, mispaired
from experiments.real.vocabulary import cut_checkpoint, used_tokens
from experiments.real.worlds import Sib200
from tests.experiments.conftest import write

SETTING = {"epochs": 1, "batch": 4, "layers": [1, 2], "pack_batch": 8, "pack_passes": 1}


@pytest.fixture
def lab(data, whole, tmp_path, monkeypatch):
    world = Sib200(("en", "sw"))
    texts = world.texts()
    folder = tmp_path / "cut"
    folder.mkdir()
    cut_checkpoint(whole, used_tokens(whole, texts), folder, texts)
    monkeypatch.setitem(registry.WORLDS, "small", lambda: Sib200(("en", "sw")))
    monkeypatch.setitem(bases.BASES, "toy", Base("toy", (), "none", "", "none"))
    return Lab(tmp_path / "records", given={"toy small": folder}, packs=tmp_path / "packs")


def cell(recipe, seed=0, **setting):
    return cell_of(
        {"base": "toy", "world": "small", "recipe": recipe, "seed": seed, "setting": {**SETTING, **setting}}
    )


@pytest.mark.parametrize("recipe", ["plain", "align", "mid-align", "distil", "pseudo", "align-pseudo", "pack-pseudo"])
def test_a_cell_is_kept_and_the_same_again(lab, recipe):
    first = lab.run(cell(recipe))
    assert set(first["right"]["test"]) == {"en", "sw"} and len(first["right"]["test"]["sw"]) == 6
    assert lab.run(cell(recipe)) == first  # read, not run: the seconds are the same
    lab.place(cell(recipe)).unlink()
    again = lab.run(cell(recipe))
    assert again["right"] == first["right"] and again["noted"][-1] == first["noted"][-1]  # a pack is read, not made


def test_a_pack_serves_other_cells(lab):
    first = lab.run(cell("pack"))
    assert first["noted"][0]["steps"] > 0
    second = lab.run(cell("pack", rate=1e-3))
    assert "kept" in second["noted"][0]
    alone = Lab(lab.folder.parent / "others", given=lab._given)
    assert alone.run(cell("pack", rate=1e-3))["noted"][1] == second["noted"][1]  # the same losses as made afresh


def test_a_pack_is_added_to_a_task(lab, tmp_path):
    place = lab._given["toy small"]
    found = []
    for recipe in (recipes.base, recipes.plain, recipes.packed, recipes.pack_added):
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(place)
        world = registry.WORLDS["small"]()
        job = recipes.Job(model, tokenizer, world, cell("pack").setting, 0, tmp_path / recipe.__name__)
        found.append({name: weight.clone() for name, weight in recipe(job).state_dict().items()})
    base, task, pack, both = found
    for name, weight in both.items():
        torch.testing.assert_close(weight, pack[name] + task[name] - base[name])
    assert any(not torch.equal(pack[name], base[name]) for name in base)


def test_other_rows_are_another_cell(lab, data):
    record = lab.run(cell("base"))
    write(data / "benchmarks/sib200/sw.jsonl.gz", [])
    later = Lab(lab.folder, given=lab._given)
    assert later.record(cell("base")) is None
    with pytest.raises(UserError, match="another version of the rows"):
        later.take(record)


def test_unknown_options_are_named():
    with pytest.raises(UserError, match=r"'rte'.*Did you mean 'rate'"):
        cell("plain", rte=1)


def test_wrong_pairs_are_wrong():
    import random

    pairs = [{"text": f"{n}", "reference": f"{n}", "lang": lang} for lang in ("a", "b") for n in range(5)]
    turned = mispaired(pairs, random.Random(0))
    assert all(pair["text"] != pair["reference"] for pair in turned)
    assert sorted(pair["reference"] for pair in turned) == sorted(pair["reference"] for pair in pairs)


def test_a_share_of_wrong_pairs():
    import random

    pairs = [{"text": f"{n}", "reference": f"{n}", "lang": lang} for lang in ("a", "b") for n in range(20)]
    few, more = (mispaired(pairs, random.Random(0), share) for share in (0.1, 0.5))
    wrong = [{n for n, pair in enumerate(found) if pair["text"] != pair["reference"]} for found in (few, more)]
    assert [len(places) for places in wrong] == [4, 20]
    assert mispaired(pairs, random.Random(0), 0) == pairs
    assert all(sum(pairs[n]["lang"] == "a" for n in places) * 2 == len(places) for places in wrong)


def test_text_is_kept_for_a_machine_without_the_commands(tmp_path, monkeypatch):
    pairs = [{"text": f"Nyota {n} angani", "reference": f"Star number {n} was seen.", "lang": "sw"} for n in range(8)]
    monkeypatch.setenv("CC_TUNING_TEXT", str(tmp_path))
    first = chosen(pairs, ["A star."], 3, "random", 0)
    monkeypatch.setattr(text, "main", lambda argv: pytest.fail("the command was run again"))
    assert chosen(pairs, ["A star."], 3, "random", 0) == first and len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(text, "main", lambda argv: 2)
    with pytest.raises(RuntimeError, match="pair select ended with status 2"):
        chosen(pairs, ["A star."], 3, "random", 1)  # another seed is another text


def test_text_is_chosen_and_checked_by_the_commands():
    near = "The gardener watered the roses and the tulips of the old garden."
    pairs = [
        {"text": f"Nyota {n} angani", "reference": f"Star number {n} was seen by astronomers.", "lang": "sw"}
        for n in range(30)
    ] + [{"text": "Bustani ya waridi", "reference": "A garden of roses and tulips.", "lang": "sw"}]
    assert chosen(pairs, [near], 1, "tfidf", 0) == [pairs[-1]]
    assert len(chosen(pairs, [near], 5, "random", 0)) == 5
    kept = checked([pairs[-1], {**pairs[0], "reference": pairs[0]["text"]}], None)
    assert kept == [pairs[-1]]  # the other's two sides are the same


def test_a_plan_waits_chooses_and_goes_on(lab, tmp_path):
    told = {"base": "toy", "world": "small", "recipe": "plain", "setting": SETTING}
    plan = [
        {"group": "late", "cell": {**told, "seed": 1}, "after": "search", "take": ["rate"]},
        {"group": "search", "cell": {**told, "setting": {**SETTING, "rate": 1e-3}}},
        {"group": "search", "cell": {**told, "recipe": "no such"}},
    ]
    results = tmp_path / "plan" / "results.jsonl"
    results.parent.mkdir()
    queue = Queue(plan, results)
    assert queue.take() == 1  # the first line waits
    queue.reset()
    work(0, queue, 1e12, lab._given)
    records = {record["group"]: record for record in map(json.loads, results.read_text().splitlines())}
    assert set(records) == {"search", "late"}
    assert records["late"]["cell"]["setting"]["rate"] == 1e-3
    assert queue.take() is None and queue.failed() == 1
    longer = Queue([{"group": "new", "cell": {**told, "seed": 2}}, *plan], results)
    longer.reset()
    assert [longer.take(), longer.take(), longer.take()] == [0, 3, None]  # the new line, and the one that failed


def test_bad_plans_and_names_are_one_line(tmp_path, capsys):
    broken = tmp_path / "plan.jsonl"
    broken.write_text('{"group": "a"}\n')
    for argv, message in (
        (["plan", str(tmp_path / "none.jsonl")], "none.jsonl: no such file; expected a plan"),
        (["plan", str(broken)], "plan.jsonl:1: not a line of a plan"),
        (["run", "smollm2-135m", "sib200", "plain", "--setting", "[1]"], "--setting: expected a JSON object"),
    ):
        assert run.main(argv) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match=r"'qualty' is not one of.*Did you mean 'quality'"):
        plans.main("qualty")
    with pytest.raises(UserError, match="no record of the group plain; there are facts plain"):
        page([{"group": "facts plain", "cell": {"recipe": "plain"}}])


def test_files_above_the_limit_are_cut(tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "rows.tar").write_bytes(bytes(range(250)))
    (flat / "plan.jsonl").write_bytes(b"{}")
    folders = _distributed(flat, tmp_path / "out", 100)
    assert all(sum(path.stat().st_size for path in folder.iterdir()) <= 100 for folder in folders)
    pieces = {path.name: path.read_bytes() for folder in folders for path in folder.glob("rows.tar.piece*")}
    assert b"".join(pieces[name] for name in sorted(pieces)) == bytes(range(250)) and len(pieces) == 3


def test_a_full_device_is_tried_again(lab, tmp_path, monkeypatch):
    told = {"base": "toy", "world": "small", "recipe": "full", "setting": SETTING}
    results = tmp_path / "plan" / "results.jsonl"
    results.parent.mkdir()
    queue, calls = Queue([{"group": "a", "cell": told}], results), []

    def full(job):
        calls.append(job.seed)
        if len(calls) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return job.model

    monkeypatch.setitem(registry.RECIPES, "full", full)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    work(0, queue, 1e12, lab._given)
    assert len(calls) == 3 and queue.take() is None and len(results.read_text().splitlines()) == 1


def test_the_best_on_dev_is_taken():
    def record(rate, dev, test):
        rights = {split: {"en": "1", "sw": flags} for split, flags in (("dev", dev), ("test", test))}
        return {"cell": {"setting": {"rate": rate}}, "data": "d", "base": "b", "right": rights}

    line = {"cell": {"setting": {"rate": 0.0, "epochs": 2}}, "after": "x", "take": ["rate"]}
    found = resolved(line, [record(1.0, "100", "111"), record(2.0, "110", "000")])
    assert found["setting"] == {"rate": 2.0, "epochs": 2}
