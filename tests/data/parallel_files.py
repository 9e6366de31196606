"""The same six sentences in every layout that parallel text is published in."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import zipfile

import datasets
import pyarrow as pa
import pytest

from cctuning.data import load_parallel
from cctuning.errors import UserError

PAIRS = [
    ("Mto unafurika kila mwaka na barabara hufungwa.", "The river floods every year and the road is closed."),
    ("Watoto wanacheza mpira nje ya shule yao.", "The children are playing football outside their school."),
    ('"Ndiyo, alisema mama.', '"Yes, said the mother.'),
    ("Nitakuja kesho asubuhi kukusaidia na kazi.", "I will come tomorrow morning to help you with the work."),
    ('Kitabu kinaitwa "Safari".', 'The book is called "Journey".'),
    ("Daktari alisema tunywe maji mengi kila siku.", "The doctor said we should drink a lot of water every day."),
]
CHINESE = [
    "这条河每年都会泛滥。",
    "孩子们在学校外面踢足球。",
    "妈妈说好。",
    "我明天早上来。",
    "这本书叫旅行。",
    "多喝水。",
]
SWAHILI, ENGLISH = [sw for sw, _ in PAIRS], [en for _, en in PAIRS]


def text(path, lines, encoding="utf-8"):
    path.write_text("".join(f"{line}\n" for line in lines), encoding=encoding)
    return str(path)


def records(path, rows):
    return text(path, [json.dumps(row, ensure_ascii=False) for row in rows])


def beside(folder):
    return records(folder / "rows.jsonl", [{"text": sw, "text_en": en, "lang": "swh"} for sw, en in PAIRS])


def as_in_python(folder):
    return records(folder / "rows.jsonl", [{"text": sw, "reference": en, "lang": "sw"} for sw, en in PAIRS])


def prompts(folder):
    rows = [{"prompt": sw, "response": "x", "prompt_en": en, "lang": "sw"} for sw, en in PAIRS]
    return records(folder / "rows.jsonl", rows)


def conversations(folder):
    rows = [
        {"prompt": [{"role": "user", "content": sw}], "prompt_en": [{"role": "user", "content": en}], "lang": "sw"}
        for sw, en in PAIRS
    ]
    return records(folder / "rows.jsonl", rows)


def translation(folder):
    return records(
        folder / "rows.jsonl", [{"id": i, "translation": {"en": e, "sw": s}} for i, (s, e) in enumerate(PAIRS)]
    )


def translation_parquet(folder):
    rows = [{"translation": {"eng_Latn": en, "swh_Latn": sw}, "laser_score": 1.1} for sw, en in PAIRS]
    datasets.Dataset.from_list(rows).to_parquet(folder / "rows.parquet")
    return str(folder / "rows.parquet")


def columns_csv(folder):
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("en", "sw"), *((en, sw) for sw, en in PAIRS)])
    return str(folder / "rows.csv")


def quoted_tsv(folder):
    """As Python's csv module and pandas write it."""
    with (folder / "rows.tsv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([("English", "Swahili"), *((en, sw) for sw, en in PAIRS)])
    return str(folder / "rows.tsv")


def all_quoted_tsv(folder):
    with (folder / "rows.tsv").open("w", encoding="utf-8", newline="") as file:
        rows = [("sentence_eng_Latn", "sentence_swh_Latn"), *((en, sw) for sw, en in PAIRS)]
        csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL).writerows(rows)
    return str(folder / "rows.tsv")


def tico_tsv(folder):
    """TICO-19's own files."""
    head = "sourceLang\ttargetLang\tsourceString\ttargetString\tstringID\turl\tlicense\ttranslatorId"
    rows = [f"en\tsw\t{en}\t{sw}\tCMU_1:{i}\thttp://x\tpublic\t7" for i, (sw, en) in enumerate(PAIRS)]
    return text(folder / "test.en-sw.tsv", [head, *rows])


def sentence_transformers(folder):
    with (folder / "en-sw.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("english", "non_english"), *((en, sw) for sw, en in PAIRS)])
    return str(folder / "en-sw.csv")


def many_things(folder):
    rows = [f"{en}\t{sw}\tCC-BY 2.0 (France) Attribution: tatoeba.org #{i} (CK)" for i, (sw, en) in enumerate(PAIRS)]
    return text(folder / "swh.txt", rows)


def many_things_zip(folder):
    many_things(folder)
    with zipfile.ZipFile(folder / "swh-eng.zip", "w") as archive:
        archive.write(folder / "swh.txt", "swh.txt")
        archive.writestr("_about.txt", "The readme.\n")
    (folder / "swh.txt").unlink()
    return str(folder / "swh-eng.zip")


def tatoeba_pairs(folder):
    """Tatoeba's custom export: id, sentence, id, sentence."""
    return text(folder / "Sentence pairs.tsv", [f"{i}\t{sw}\t{i + 90}\t{en}" for i, (sw, en) in enumerate(PAIRS, 1)])


def wikimatrix(folder):
    rows = "".join(f"1.{9 - i}\t{en}\t{sw}\n" for i, (sw, en) in enumerate(PAIRS))
    (folder / "WikiMatrix.en-sw.tsv.gz").write_bytes(gzip.compress(rows.encode()))
    return str(folder / "WikiMatrix.en-sw.tsv.gz")


def nllb_tsv(folder):
    """All nine columns: texts, three scores, and source and link of each side."""
    places = "crawl-data/CC-MAIN-2019-09/0.wet.gz\thttp://a.b/c\tparacrawl9_hieu\thttp://d.e"
    return text(folder / "eng_Latn-swh_Latn.tsv", [f"{en}\t{sw}\t1.25\t0.99\t0.97\t{places}" for sw, en in PAIRS])


def headed_tsv(folder):
    """A header that names no language in a form that is known."""
    return text(folder / "mine.en-sw.tsv", ["English sentence\tKiswahili", *(f"{en}\t{sw}" for sw, en in PAIRS)])


def tatoeba_challenge(folder):
    return text(folder / "test.tsv", [f"eng\tswh\t{en}\t{sw}" for sw, en in PAIRS])


def moses(folder):
    text(folder / "OPUS.en-sw.en", ENGLISH)
    return text(folder / "OPUS.en-sw.sw", SWAHILI)


def moses_by_reference(folder):
    return moses(folder).removesuffix(".sw") + ".en"


def moses_prefix(folder):
    return moses(folder).removesuffix(".sw")


def moses_zst(folder):
    for path in (moses(folder), moses_by_reference(folder)):
        with open(path, "rb") as file:
            data = pa.compress(file.read(), "zstd", asbytes=True)
        with open(f"{path}.zst", "wb") as file:
            file.write(data)
    for name in ("OPUS.en-sw.en", "OPUS.en-sw.sw"):
        (folder / name).unlink()
    return str(folder / "OPUS.en-sw.sw.zst")


def flores(folder):
    text(folder / "eng_Latn.dev", ENGLISH)
    return text(folder / "swh_Latn.dev", SWAHILI)


def opus_zip(folder):
    moses(folder)
    with zipfile.ZipFile(folder / "en-sw.txt.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("OPUS.en-sw.en", "OPUS.en-sw.sw"):
            archive.write(folder / name, name)
        archive.writestr("README", "Corpus Name: OPUS\n")
        archive.writestr("LICENSE", "free\n")
        archive.writestr("OPUS.en-sw.xml", "<cesAlign/>")
    return str(folder / "en-sw.txt.zip")


def unit(*sides):
    return "<tu>" + "".join(f'<tuv xml:lang="{lang}"><seg>{seg}</seg></tuv>' for lang, seg in sides) + "</tu>"


def tmx(folder):
    units = "".join(unit(("en-GB", en), ("sw", sw)) for sw, en in PAIRS)
    body = f'<?xml version="1.0"?><tmx version="1.4"><header srclang="en"/><body>{units}</body></tmx>'
    (folder / "memory.tmx.xz").write_bytes(lzma.compress(body.encode()))
    return str(folder / "memory.tmx.xz")


def tbx(folder):
    sets = [(("en", en), ("swh", sw)) for sw, en in PAIRS]
    entries = "".join(
        "<conceptEntry>"
        + "".join(
            f'<langSec xml:lang="{lang}"><termSec><term>{term}</term></termSec>'
            f"<termSec><term>another</term></termSec></langSec>"
            for lang, term in entry
        )
        + "</conceptEntry>"
        for entry in sets
    )
    body = f'<tbx type="TBX-Core" xmlns="urn:iso:std:iso:30042:ed-2"><text><body>{entries}</body></text></tbx>'
    (folder / "terms.tbx").write_text(body, encoding="utf-8")
    return str(folder / "terms.tbx")


def tatoeba_export(folder):
    """sentences.csv and links.csv, which have tabs for all their name, with a language nobody asked for."""
    rows = [f"{i}\tswh\t{sw}" for i, sw in enumerate(SWAHILI, 1)] + [
        f"{i}\teng\t{en}" for i, en in enumerate(ENGLISH, 11)
    ]
    rows += ["30\tepo\tSaluton", "31\t\\N\tx", "32\teng\tHello"]
    links = [f"{i}\t{i + 10}" for i in range(1, 7)] + [f"{i + 10}\t{i}" for i in range(1, 7)] + ["1\t30", "30\t1"]
    (folder / "sentences.csv.bz2").write_bytes(bz2.compress("".join(f"{row}\n" for row in rows).encode()))
    text(folder / "links.csv", links)
    return str(folder)


def tatoeba_by_language(folder):
    """The files of one language and of its links with English."""
    for code, first, side in (("swh", 1, SWAHILI), ("eng", 11, ENGLISH)):
        text(folder / f"{code}_sentences.tsv", [f"{first + i}\t{code}\t{line}" for i, line in enumerate(side)])
    text(folder / "swh-eng_links.tsv", [f"{i}\t{i + 10}" for i in range(1, 7)])
    return str(folder)


def tatoeba_from_english(folder):
    """The links of English with the language, which are the same ones the other way round."""
    tatoeba_by_language(folder)
    (folder / "swh-eng_links.tsv").unlink()
    text(folder / "eng-swh_links.tsv", [f"{i + 10}\t{i}" for i in range(1, 7)])
    return str(folder)


def directory(folder):
    (folder / "many").mkdir()
    half = [{"text": sw, "text_en": en, "lang": "sw"} for sw, en in PAIRS]
    records(folder / "many" / "a.jsonl", half[:3])
    text(folder / "many" / "rest.en", ENGLISH[3:]), text(folder / "many" / "rest.sw", SWAHILI[3:])
    text(folder / "many" / "README", ["No data."])
    return str(folder / "many")


def saved(folder):
    datasets.Dataset.from_list([{"text": sw, "text_en": en, "lang": "sw"} for sw, en in PAIRS]).save_to_disk(
        folder / "s"
    )
    return str(folder / "s")


# -- reading them -----------------------------------------------------------------------------------------------------


def pairs(dataset):
    return list(zip(dataset["text"], dataset["reference"], strict=True))


def one(path, **options):
    keywords = {key: options.pop(key) for key in ("reference_language", "seed") if key in options}
    return load_parallel([{"path": str(path), **options}], **keywords)


def refused(says, path, **options):
    with pytest.raises(UserError, match=says) as error:
        one(path, **options)
    assert "\n" not in str(error.value)
