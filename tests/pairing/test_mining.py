"""`cctuning pair mine`: two shuffled files come back together, and what has no partner stays out."""

from __future__ import annotations

import random

import numpy as np
import pytest

from cctuning.errors import UserError
from cctuning.pairing import mining
from cctuning.pairing.encoder import Encoder
from cctuning.pairing.mining import MineOptions, mine, mine_vectors, nearest
from tests.cli.world import done
from tests.data.parallel_files import ENGLISH, SWAHILI, text
from tests.pairing.test_meaning import encode
from tests.pairing.world import lines, write


@pytest.fixture
def files(tmp_path, monkeypatch):
    """300 meanings in both languages, 100 more in each alone, shuffled."""
    monkeypatch.setattr(mining, "open_encoder", lambda name: Encoder(encode))
    paths = []
    for lang, numbers in (("sw", range(400)), ("en", [*range(300), *range(1000, 1100)])):
        texts = [f"{lang} maneno-ya-{number}-hapa m{number}" for number in numbers]
        random.Random(lang).shuffle(texts)
        (tmp_path / f"a.{lang}").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        paths.append(str(tmp_path / f"a.{lang}"))
    return paths


def right(rows):
    return sum(row["text"].split()[2] == row["text_en"].split()[2] for row in rows)


def test_shuffled_files_are_joined(files, tmp_path, capsys):
    done("pair", "mine", *files, "--output", tmp_path / "o.jsonl")
    rows = lines(tmp_path / "o.jsonl")
    assert f"rows: {len(rows)} of 400 and 400 sentences" in capsys.readouterr().out
    assert right(rows) > 0.97 * len(rows) and right(rows) > 240
    assert {row["lang"] for row in rows} == {"sw"} and rows == sorted(rows, key=lambda row: -row["margin"])
    place, line = rows[0]["origin_reference"].rsplit(":", 1)
    with open(place, encoding="utf-8") as file:
        assert file.read().split("\n")[int(line) - 1] == rows[0]["text_en"]
    strict, _ = mine(MineOptions(files, output=str(tmp_path / "s.jsonl"), margin=rows[50]["margin"]))
    assert len(strict.pairs) in (50, 51, 52)


def test_records_are_read_too(files, tmp_path):
    with open(files[1], encoding="utf-8") as file:
        english = write(tmp_path / "en.jsonl", [{"prompt": line.strip(), "lang": "en"} for line in file])
    found, counts = mine(MineOptions([files[0], english], output=str(tmp_path / "o.jsonl")))
    assert counts == (400, 400) and right(lines(tmp_path / "o.jsonl")) > 240
    assert found.threshold > 1


@pytest.mark.parametrize("column", ["lang", "language"])
def test_rows_in_other_languages_are_left_out(column, files, tmp_path):
    def table(path, lang, name):
        with open(path, encoding="utf-8") as file:
            rows = [{"prompt": line.strip(), column: lang} for line in file]
        return write(tmp_path / name, [*rows, *({**row, column: "fr"} for row in rows)])

    paths = [table(files[0], "swh", "sw.jsonl"), table(files[1], "en-GB", "en.jsonl")]
    _, counts = mine(MineOptions(paths, lang="sw", output=str(tmp_path / "o.jsonl")))
    assert counts == (400, 400)
    with pytest.raises(UserError, match=r"0 sentences in te .* It has rows in sw, fr"):
        mine(MineOptions(paths, lang="te", output=str(tmp_path / "t.jsonl")))


@pytest.mark.parametrize("name", ["news.sw.gz", "news.sw.xz", "news.sw.txt", "swa.zst.sw"])
def test_the_language_in_the_files_name(name):
    assert MineOptions([name, "news.en"], output="o").lang == "sw"


def test_files_in_other_languages_than_named(tmp_path):
    """By the name of the second file, and by the text of each."""
    with pytest.raises(UserError, match=r"news.txt.de: its name says de, and .* set --reference_language de"):
        MineOptions(["news.txt.fr", "news.txt.de"], output="o")
    assert MineOptions(["news.fr", "news.de"], output="o", reference_language="de").lang == "fr"
    german = ["Der Arzt hat mir gesagt, dass ich viel trinken soll.", "Wo ist der Markt, und wann öffnet er morgen?"]
    german += [
        "Die Kinder spielen nach der Schule draußen Fußball.",
        "Ich komme morgen früh und helfe dir bei der Arbeit.",
    ]
    sides = {"sw": SWAHILI, "en": ENGLISH, "de": german}
    paths = {lang: text(tmp_path / f"side-{lang}.txt", said) for lang, said in sides.items()}
    for own, other, says in (
        ("sw", "de", "the reference is (in German|not in en)"),
        ("de", "en", "the text is (in German|not in sw)"),
        ("en", "sw", "the sides are swapped"),
    ):
        with pytest.raises(UserError, match=f"{own}.txt and .*{other}.txt: .*{says}"):
            mine(MineOptions([paths[own], paths[other]], lang="sw", output=str(tmp_path / "o")))


def test_nearest_by_hand():
    rng = np.random.default_rng(0)
    texts, others = (rng.normal(size=(count, 8)).astype(np.float32) for count in (23, 17))
    texts, others = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (texts, others))
    values, places = nearest(texts, others, 3)
    similarity = texts @ others.T
    np.testing.assert_array_equal(places, np.argsort(-similarity, axis=1)[:, :3])
    np.testing.assert_allclose(values, np.take_along_axis(similarity, places, axis=1), atol=1e-6)


def test_margin_by_hand():
    """Two by two: the margin is the similarity over the mean of the four neighbours'."""
    texts, references = np.eye(2, dtype=np.float32), np.array([[0.8, 0.6], [0.6, 0.8]], np.float32)
    found = mine_vectors(texts, references, 1.0)
    assert [(one, other, round(margin, 4)) for one, other, margin in found.pairs] == [(0, 0, 1.1429), (1, 1, 1.1429)]


def test_what_is_refused(files, tmp_path):
    for options, says in (
        ({"files": files[:1]}, "two files are needed"),
        ({"output": ""}, "--output: missing"),
        ({"files": ["x.txt", "y.txt"]}, "--lang: missing"),
        ({"files": files[:1] * 2}, "is named twice"),
        ({"lang": "eng"}, "--lang en: is the reference language"),
    ):
        with pytest.raises(UserError, match=says):
            MineOptions(**{"files": files, "output": "o", **options})
    assert MineOptions(files[::-1], output="o").files == files  # named the other way round
    with pytest.raises(UserError, match="no such file"):
        mine(MineOptions([str(tmp_path / "no.sw"), files[1]], output=str(tmp_path / "o")))
    with pytest.raises(UserError, match="no pair with a margin of 9"):
        mine(MineOptions(files, output=str(tmp_path / "o"), margin=9))
