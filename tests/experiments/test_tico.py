"""The world of real text on rows of our own making: what is read and asked, packed text, a cell with benchmarks."""

from __future__ import annotations

import dataclasses
import itertools
import random
import shutil

import pytest
import torch

from cctuning.demo.base import BaseConfig, build_base, joint_text, new_model
from cctuning.demo.subwords import pack, positions_of, train_tokenizer
from cctuning.demo.worlds import ENGLISH, others, rows
from cctuning.errors import UserError
from experiments.worlds import setups, table
from experiments.worlds.cells import Cell, key, run
from experiments.worlds.experiment import check, searchable
from experiments.worlds.recipes import RECIPES
from experiments.worlds.run import main
from experiments.worlds.tico import DATA, TONGUES, TicoWorld, _rows
from tests.evaluation.data import data_directory, write

SIZES = {"sft": 12, "dev": 6, "test": 8}
SMALL = BaseConfig(
    hidden_size=32,
    layers=2,
    heads=2,
    intermediate_size=48,
    english_steps=2,
    batch_size=10,
    emergent=True,
    switched=0,
    vocab=400,
    positions=96,
    share=(("high", 0.4), ("mid", 0.4), ("low", 0.4)),
)
HINDI = "नमस्ते"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("rows")
    draw = random.Random(0)
    words = [f"word{chr(97 + i)}" for i in range(20)]
    english = [" ".join(draw.sample(words, 4)) for _ in range(40)]
    for lang, tongue in TONGUES.items():
        if lang == ENGLISH:
            continue
        said = [f"{lang} {HINDI} " + " ".join(f"{lang}{word}" for word in line.split()) for line in english]
        made = [
            {"id": f"DOC_{i % 3}:{i}", "text": one, "text_en": two}
            for i, (one, two) in enumerate(zip(said, english, strict=True))
        ]
        if lang == "sw":
            made[0]["text"] = "long " * 200  # left out in every language
        write(root / f"parallel/tico19/{tongue.tico}.jsonl.gz", made)
        if tongue.tatoeba:
            short = [{"text": f"{lang} short {i}", "text_en": f"short {i}"} for i in range(5)]
            write(root / f"parallel/tatoeba/{tongue.tatoeba}.jsonl.gz", short)
    known = ["en", "ar", "es", "fr", "hi", "id", "ru", "sw", "zh"]
    data_directory(root / "benchmarks", {"XNLI": known, "XCOPA": ["en", "id", "sw", "zh"]})
    return root


@pytest.fixture
def world(folder):
    return TicoWorld(folder, 1, SIZES)


def check_leaks(world):
    """No language but English reads what is asked, or any document."""
    asked = {lang: {item.prompt for split in ("dev", "test") for item in world.items(lang, split)} for lang in TONGUES}
    text = joint_text(world, SMALL)
    for lang in others(world):
        read = " | ".join(text[lang])
        assert not any(prompt.removesuffix(" Source:") in read for prompt in asked[lang])
        assert "DOC_" not in read and "Source" not in read
    for item in itertools.chain(*(world.items(ENGLISH, split) for split in ("text", *SIZES))):
        assert f"{item.prompt} {item.answer}" in text[ENGLISH]


def test_no_language_but_english_reads_what_is_asked_or_any_document(world):
    check_leaks(world)


@pytest.mark.parametrize("seed", range(3))
def test_a_sentence_that_is_repeated_is_left_out(folder, tmp_path, seed):
    """As in TICO-19's French: the same translation under unrelated English; and one that is Tatoeba's, too."""
    shutil.copytree(folder / "parallel", tmp_path / "parallel")
    french, short = (tmp_path / f"parallel/{name}.jsonl.gz" for name in ("tico19/fr", "tatoeba/fra"))
    made = [dict(row) for row in _rows(folder / "parallel/tico19/fr.jsonl.gz")]
    for number in range(1, 5):
        made[number + 20]["text"] = made[number]["text"]
    for path, written in ((french, made), (short, [{"text": made[30]["text"], "text_en": "short"}])):
        path.unlink()
        write(path, written)
    world = TicoWorld(tmp_path, seed, SIZES)
    check_leaks(world)
    left = {item.prompt for split in ("text", *SIZES) for item in world.items("fr", split)}
    gone = {made[number]["text"] + " Source:" for number in (0, 1, 2, 3, 4, 30)}
    assert len(left) == 40 - 10 and not left & gone


def test_questions_are_split_once_and_the_same_in_every_language(world):
    keys = {split: [item.key for item in world.items("sw", split)] for split in ("text", *SIZES)}
    assert sum(map(len, keys.values())) == len(set(itertools.chain(*keys.values()))) == 39
    for lang, (split, own) in itertools.product(TONGUES, keys.items()):
        assert [item.key for item in world.items(lang, split)] == own
    training = rows(world, "sft")
    assert len(training) == len(TONGUES) * SIZES["sft"]
    assert all(row["response"].strip() not in row["prompt"] for row in training)


def test_a_word_is_not_cut_at_its_vowel_signs_and_a_digit_is_a_token():
    tokenizer = train_tokenizer([f"{HINDI} {HINDI} 1234"] * 20, 400)
    assert tokenizer.tokenize("72")[-2:] == ["7", "2"]
    assert len(tokenizer.tokenize(f"{HINDI} {HINDI}")) == 2
    assert tokenizer.decode(tokenizer(f"a {HINDI} 12.")["input_ids"]) == f"a {HINDI} 12."


def test_packed_lines_are_whole_and_do_not_see_each_other():
    lines = [f"line {i} says {'so ' * (i % 5)}" for i in range(20)]
    tokenizer = train_tokenizer(lines, 300)
    ids, labels = pack(lines, tokenizer, 64, seed=0)
    told = [tokenizer.decode(row).replace("<pad>", "") for row in ids.tolist()]
    assert sorted("".join(told).split("</s>")[:-1]) == sorted(lines) and all(one.endswith("</s>") for one in told)
    assert torch.equal(labels != -100, (ids != tokenizer.pad_token_id) & (positions_of(ids, 2) > 0))
    model = new_model(tokenizer, SMALL, len(tokenizer)).eval()
    with torch.no_grad():
        places = positions_of(ids, tokenizer.eos_token_id)
        together = model(input_ids=ids, position_ids=places, use_cache=False).logits
        for row, logits in zip(ids.tolist(), together, strict=True):
            start = 0
            while tokenizer.eos_token_id in row[start:]:
                stop = row.index(tokenizer.eos_token_id, start) + 1
                alone = model(input_ids=torch.tensor([row[start:stop]])).logits[0]
                torch.testing.assert_close(logits[start:stop], alone, atol=2e-5, rtol=0)
                start = stop


def test_a_cell_scores_the_test_split_and_the_benchmarks(folder, monkeypatch, tmp_path):
    monkeypatch.setenv(DATA, str(folder))
    small = dataclasses.replace(
        setups.SETUPS["tico"],
        make=lambda seed: TicoWorld(folder, seed, SIZES),
        config=SMALL,
        trained={"per_device_train_batch_size": 16, "max_length": 96},
        benchmarks=("XCOPA", "XNLI"),
    )
    monkeypatch.setitem(setups.SETUPS, "tico", small)
    settings = {"learning_rate": 1e-3, "num_train_epochs": 1}
    cell = Cell("tico", 3, "cc-start+replay", settings, "test")
    record = run(cell, tmp_path)
    assert {lang: len(flags) for lang, flags in record["right"]["student"].items()} == dict.fromkeys(TONGUES, 8)
    scored = record["benchmarks"]
    assert set(scored) == {"XCOPA", "XNLI"} and set(scored["XNLI"]) == {*TONGUES} - {"id"}
    assert all(0 <= one <= 100 for by in scored.values() for one in by.values())
    summary = table.summarise([TicoWorld(folder, 3, SIZES)] * 2, {"cc-start+replay": [record, record]})
    xnli = scored["XNLI"]
    others_mean = sum(one for lang, one in xnli.items() if lang != ENGLISH) / (len(xnli) - 1)
    assert f"{xnli[ENGLISH]:.1f}, {others_mean:.1f}" in table.markdown("tico", summary).splitlines()[-1]
    assert "benchmarks" not in run(dataclasses.replace(cell, split="dev"), tmp_path)
    base = build_base(TicoWorld(folder, 3, SIZES), tmp_path / "bases", dataclasses.replace(SMALL, seed=3), False)
    assert (tmp_path / "bases" / base.name).is_dir()


def test_a_cell_with_benchmarks_is_kept_by_their_rows(folder, monkeypatch, tmp_path):
    """Other rows of a benchmark that is scored, or none, are another cell; other benchmarks do not count."""

    def places(root):
        monkeypatch.setenv(DATA, str(root))
        cells = (Cell("tico", 0, "vanilla+replay", {"learning_rate": 1e-4}, split) for split in ("dev", "test"))
        return [key(cell, TicoWorld(folder, 0, SIZES), SMALL, None) for cell in cells]

    (dev, test), copy = places(folder), tmp_path / "benchmarks"
    shutil.copytree(folder / "benchmarks", copy)
    write(copy / "juletxara/mgsm/test/sw.jsonl.gz", [{"question": "1 + 1", "answer_number": 2}])
    assert places(tmp_path) == [dev, test]
    with next((copy / "cambridgeltl/xcopa/test").glob("sw.*")).open("ab") as file:
        file.write(b" ")
    assert places(tmp_path)[0] == dev and places(tmp_path)[1] != test
    other = places(tmp_path)[1]
    shutil.rmtree(copy)
    assert places(tmp_path)[0] == dev and places(tmp_path)[1] not in (test, other)


def test_a_setup_with_a_search_of_its_own_refuses_what_is_nothing_without_its_own(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv(DATA, raising=False)
    lost = [
        "xtune",
        "mad-x",
        "more-steps",
        "more-steps+replay",
        "align",
        "cc-start-weight+replay",
        "cc-start-lora+replay",
    ]
    assert main(["run", "tico", "--recipes", "vanilla+replay", *lost, "--output", str(tmp_path / "lab")]) == 2
    error = capsys.readouterr().err
    assert f"of what {', '.join(lost)} should be" in error and error.count("\n") == 1
    assert not (tmp_path / "lab").exists()
    left = searchable("tico")
    assert not {*left} & {*lost} and {"vanilla", "cc", "vanilla+replay", "cc-start+free+replay"} <= {*left}
    assert searchable("facts") == list(RECIPES)
    with pytest.raises(UserError, match="CC_TUNING_DATA is not set"):  # settings taken over: all but the rows is well
        check("tico", lost, [0], [100], taken_over=True)


def test_bad_input_is_one_line(folder, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv(DATA, raising=False)
    assert main(["run", "tico", "--output", str(tmp_path)]) == 2
    assert "CC_TUNING_DATA is not set: the setup `tico` reads real rows" in capsys.readouterr().err
    small = dataclasses.replace(setups.SETUPS["tico"], make=lambda seed: TicoWorld(folder, seed, SIZES))
    monkeypatch.setitem(setups.SETUPS, "tico", small)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "parallel").symlink_to(folder / "parallel")
    monkeypatch.setenv(DATA, str(bare))
    assert main(["run", "tico", "--output", str(tmp_path / "lab")]) == 2
    assert "benchmarks: no such directory" in capsys.readouterr().err and not (tmp_path / "lab").exists()
    with pytest.raises(UserError, match=r"es-LA\.jsonl\.gz: no such file"):
        TicoWorld(tmp_path, 0)
    with pytest.raises(UserError, match="39 sentences are there in every language; expected over 1300"):
        TicoWorld(folder, 0)
    damaged = tmp_path / "parallel/tico19/es-LA.jsonl.gz"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"not gzip")
    with pytest.raises(UserError, match="cannot be read"):
        TicoWorld(tmp_path, 0)
    with pytest.raises(ValueError, match="vocab: a graft needs"):
        BaseConfig(vocab=10)
