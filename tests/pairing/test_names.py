"""`cctuning pair names`: names from CLDR, Wikidata's labels and glossaries."""

from __future__ import annotations

import bz2
import json

import pytest

from cctuning.cli import main
from cctuning.data import load_parallel
from cctuning.errors import UserError
from cctuning.pairing.names import KINDS, NamesOptions, names
from tests.cli.world import done
from tests.pairing.world import lines, write


def run(folder, *langs, **options):
    report = names(NamesOptions(list(langs), str(folder / "names.jsonl"), overwrite=True, **options))
    rows = lines(folder / "names.jsonl")
    reference = f"text_{options.get('reference_language', 'en')}"
    return report, {(row["lang"], row["kind"], row[reference]): row["text"] for row in rows}


def test_cldr_has_names_of_every_kind(tmp_path):
    report, found = run(tmp_path, "sw", "te", "zh-Hant")
    assert found["sw", "territory", "Germany"] == "Ujerumani" and found["te", "territory", "India"] == "భారతదేశం"
    assert found["zh-Hant", "language", "French"] == "法文" and found["te", "script", "Cyrillic"] == "సిరిలిక్"
    assert found["sw", "currency", "Kenyan Shilling"] == "Shilingi ya Kenya"
    assert found["te", "city", "Nairobi"] == "నైరోబీ" and found["zh-Hant", "unit", "kilometers"] == "公里"
    for lang, counts in report.counts.items():
        assert set(counts) == set(KINDS), lang
    assert not [key for key, name in found.items() if key[2] == name] and report.same > 50


def test_a_language_that_cldr_lacks(tmp_path):
    report, _ = run(tmp_path, "sw", "ace")
    assert report.notes == ["ace: CLDR has no names in it; give a Wikidata or glossary file.", "ace: no names."]
    with pytest.raises(UserError, match="no names: ace: CLDR has no names in it"):
        run(tmp_path, "ace")


def test_names_that_cldr_only_inherits_from_another_language_are_left_out(tmp_path):
    report, found = run(tmp_path, "gv", "xh", "ht", "ny", "nn", "sw")
    assert {name for (lang, *_), name in found.items() if lang == "gv"} == {"Rywvaneth Unys", "Ellan Vannin", "Gaelg"}
    assert report.counts["ht"] == {"language": 1} and report.notes == ["ny: no names."]
    assert "unit" not in report.counts["xh"] and ("xh", "city", "Ho Chi Minh City") not in found
    assert found["nn", "unit", "hours"] == "timar" and report.counts["nn"]["unit"] > 100
    assert not [key for key in found if "Pseudo" in key[2] or "Unknown" in key[2]]
    _, found = run(tmp_path, "en", reference_language="fr", kinds=["city"])
    assert "Kolkata" in found.values()  # from the root, which is English
    _, found = run(tmp_path, "zu", reference_language="sw", kinds=["city", "unit"])
    assert not [key for key in found if key[2] in ("Berlin", "mi", "bit")]


def test_wikidata(tmp_path):
    """The dump's own layout, and a plain one."""

    def label(lang, value):
        return {lang: {"language": lang, "value": value}}

    entities = [
        {
            "type": "item",
            "id": "Q1",
            "labels": {**label("en", "universe"), **label("sw", "ulimwengu"), **label("zh-hant", "宇宙")},
        },
        {"type": "item", "id": "Q2", "labels": {**label("sw", "bila Kiingereza")}},
        {"type": "item", "id": "Q3", "labels": {**label("en", "Nairobi"), **label("sw", "Nairobi")}},
        {"type": "item", "id": "Q4", "labels": {**label("en", "death"), **label("nb", "død")}},
    ]
    dump = "[\n" + ",\n".join(json.dumps(entity) for entity in entities) + "\n]\n"
    (tmp_path / "latest-all.json.bz2").write_bytes(bz2.compress(dump.encode()))
    plain = write(tmp_path / "labels.jsonl", [{"id": "Q5", "labels": {"en": "water", "sw": "maji"}}])
    report, found = run(
        tmp_path, "sw", "zh-Hant", "no", cldr=False, wikidata=[str(tmp_path / "latest-all.json.bz2"), plain]
    )
    assert (
        found
        == {
            ("sw", "wikidata", "universe"): "ulimwengu",
            ("zh-Hant", "wikidata", "universe"): "宇宙",
            ("no", "wikidata", "death"): "død",
            ("sw", "wikidata", "water"): "maji",
        }
        and report.same == 1
    )
    names = [{"en": "train", "pt": "trem"}, {"en": "mobile", "pt-pt": "telemóvel"}]
    names += [{"en": "bus", "pt": "autocarro", "pt-br": "ônibus"}]
    labels = write(tmp_path / "pt.jsonl", [{"labels": one} for one in names])
    report, found = run(tmp_path, "pt-BR", "sw", cldr=False, wikidata=[labels, plain])
    assert {*found.values()} == {"trem", "telemóvel", "ônibus", "maji"}
    told = "entities without a label in pt-BR: that in another variant is taken: pt (1), pt-PT (1)."
    assert report.notes == [f"{labels}: {told}"]
    names = [{"mul": "Douglas Adams", "ru": "Дуглас Адамс"}, {"mul": "Москва", "sw": "Moscow"}, {"mul": "Oslo"}]
    names.append({"mul": "Praha", "en": "Prague"})
    labels = write(tmp_path / "mul.jsonl", [{"labels": one} for one in names])
    _, found = run(tmp_path, "ru", "sw", cldr=False, wikidata=[labels])
    assert found == {("ru", "wikidata", "Douglas Adams"): "Дуглас Адамс"}
    (tmp_path / "bad.jsonl").write_text("{}\nno\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"bad.jsonl:2: expected a JSON object with labels"):
        run(tmp_path, "sw", cldr=False, wikidata=[str(tmp_path / "bad.jsonl")])


def test_glossaries(tmp_path):
    (tmp_path / "g.csv").write_text("en,sw,fr\nfever,homa,fièvre\ncough,kikohozi,\n,x,y\n", encoding="utf-8")
    entry = "<termEntry><langSet xml:lang='en'><tig><term>virus</term></tig></langSet>"
    entry += "<langSet xml:lang='sw'><tig><term>kirusi</term></tig></langSet></termEntry>"
    (tmp_path / "g.tbx").write_text(f"<martif><text><body>{entry}</body></text></martif>", encoding="utf-8")
    report, found = run(tmp_path, "sw", cldr=False, glossary=[str(tmp_path / "g.csv"), str(tmp_path / "g.tbx")])
    assert {key[2]: name for key, name in found.items()} == {"fever": "homa", "cough": "kikohozi", "virus": "kirusi"}
    assert "sw: 1 entries were skipped, the first" in report.notes[0]


def test_limit_and_other_reference(tmp_path):
    report, _ = run(tmp_path, "sw", limit=5)
    assert report.counts["sw"].total() == 5
    report = names(NamesOptions(["sw"], str(tmp_path / "fr.jsonl"), reference_language="fr", kinds=["territory"]))
    assert {"text": "Ujerumani", "text_fr": "Allemagne", "lang": "sw", "kind": "territory"} in lines(
        tmp_path / "fr.jsonl"
    )


@pytest.mark.parametrize(
    "options, says",
    [
        ({"lang": []}, "--lang: missing"),
        ({"lang": ["qqqq"]}, "unknown language 'qqqq'"),
        ({"lang": ["en"]}, "is the reference language"),
        ({"kinds": ["unit", "teritory"]}, "Did you mean 'territory'"),
        ({"output": ""}, "--output: missing"),
        ({"limit": -1}, "limit: expected at least 0"),
    ],
)
def test_options_that_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        NamesOptions(**{"lang": ["sw"], "output": "x.jsonl", **options})


def test_a_mistyped_action_names_the_nearest(capsys):
    assert main(["pair", "nmes", "--lang", "sw"]) == 2
    assert "'nmes' is neither a file nor one of select, names, mine. Did you mean 'names'?" in capsys.readouterr().err


def test_from_the_command_line(tmp_path, capsys):
    done("pair", "names", "--lang", "sw", "te", "--kinds", "script", "--limit", 9, "--output", tmp_path / "n.jsonl.gz")
    said = capsys.readouterr().out
    assert "sw: 9 names (script 9)" in said
    assert f"next: cctuning align MODEL --config pack --parallel {tmp_path}/n.jsonl.gz" in said
    dataset, report = load_parallel(str(tmp_path / "n.jsonl.gz"))
    assert report.languages == {"sw": 9, "te": 9} and len(dataset) == 18
    with pytest.raises(UserError, match="exists; name another file, or add --overwrite"):
        names(NamesOptions(["sw"], str(tmp_path / "n.jsonl.gz")))
