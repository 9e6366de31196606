"""The local engine on tiny random models of each family: languages, batches, ends, memory."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from cctuning.errors import UserError
from cctuning.pairing.translation import open_translator
from cctuning.pairing.translation.seq2seq import Seq2Seq
from tests.pairing.translation import models

RANDOM = random.Random(0)
SEGMENTS = [
    "".join(RANDOM.choice("abcdefghij ") for _ in range(RANDOM.randint(2, 60))).strip() or "a" for _ in range(12)
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Models by name, each made once."""
    places: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in places:
            if name in ("m2m100", "opus_sentencepiece"):
                pytest.importorskip("sentencepiece", reason=f"the tokenizer of {name} needs sentencepiece")
            directory = tmp_path_factory.mktemp("models") / name
            if name == "opus_several":
                places[name] = models.opus(directory, targets=("swh", "eng", "zho"))
            else:
                places[name] = getattr(models, name)(directory)
        return places[name]

    return make


def run(engine: Seq2Seq, segments=SEGMENTS, source="en", target="sw") -> list:
    answers: dict = {}
    engine.identity(source, target)
    engine.run(segments, source, target, answers.__setitem__)
    return [answers[index] for index in range(len(segments))]


def options(model: Path, **more) -> dict:
    return {"model": str(model), "num_beams": 1, "max_new_tokens": 60, "device": "cpu", **more}


FAMILIES = ["nllb", "m2m100", "madlad", "opus", "opus_several", "opus_sentencepiece"]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_a_batch_as_alone(made, family, beams):
    engine = Seq2Seq(options(made(family), batch_size=8, num_beams=beams))
    together = run(engine)
    alone = Seq2Seq(options(made(family), batch_size=1, num_beams=beams))
    assert together == run(alone)
    assert len({answer.text for answer in together}) > 2  # what is compared is not one and the same
    assert engine.counts["requests"] < alone.counts["requests"] == len(SEGMENTS)


def test_languages_are_told_as_each_family_wants_it(made):
    """Against the library's own calls, one segment at a time."""
    segment = "abc def"
    for family, source, target, src_lang, prefix, forced in (
        ("nllb", "en", "sw", "eng_Latn", "", "swh_Latn"),
        ("nllb", "zh-TW", "en", "zho_Hant", "", "eng_Latn"),
        ("madlad", "en", "sw", None, "<2sw> ", None),
        ("opus", "en", "sw", None, "", None),
        ("opus_several", "en", "zh", None, ">>zho<< ", None),
    ):
        place = made(family)
        tokenizer = AutoTokenizer.from_pretrained(place)
        if src_lang:
            tokenizer.src_lang = src_lang
        model = AutoModelForSeq2SeqLM.from_pretrained(place)
        code = tokenizer.convert_tokens_to_ids(forced) if forced else None
        output = model.generate(
            **tokenizer(prefix + segment, return_tensors="pt"),
            forced_bos_token_id=code,
            num_beams=1,
            max_new_tokens=60,
        )
        if forced:
            assert output[0, 1] == code
        expected = tokenizer.decode(output[0], skip_special_tokens=True).strip()
        (answer,) = run(Seq2Seq(options(place)), [segment], source, target)
        assert (answer.text or "") == expected, family


def test_m2m100_with_its_own_tokenizer(made):
    place = made("m2m100")
    tokenizer = AutoTokenizer.from_pretrained(place)
    engine = Seq2Seq(options(place))
    to_swahili, to_german = run(engine), run(engine, target="de")
    assert to_swahili != to_german
    tokenizer.src_lang = "en"
    model = AutoModelForSeq2SeqLM.from_pretrained(place)
    output = model.generate(
        **tokenizer(SEGMENTS[0], return_tensors="pt"),
        forced_bos_token_id=tokenizer.get_lang_id("sw"),
        max_new_tokens=60,
    )
    said = tokenizer.decode(output[0, 2:], skip_special_tokens=True).strip()
    assert said == to_swahili[0].text


@pytest.mark.parametrize("family", ["nllb", "opus"])
def test_a_translation_that_does_not_end_is_found(made, family):
    """Marian's configuration forces an end at the limit; it must not be taken for one."""
    if family == "opus":
        assert json.loads((made(family) / "generation_config.json").read_text())["forced_eos_token_id"] == 0
    whole = run(Seq2Seq(options(made(family))))
    limit = sorted(len(answer.text or "") for answer in whole)[len(whole) // 2]
    cut = run(Seq2Seq(options(made(family), max_new_tokens=limit)))
    for before, after in zip(whole, cut, strict=True):
        assert after == before or (after.text is None and f"no end of the translation within {limit}" in after.problem)
    assert any(answer.text is None for answer in cut) and any(answer.text for answer in cut)


def test_a_segment_longer_than_the_model_reads_is_a_problem_and_not_cut(made):
    engine = Seq2Seq(options(made("nllb")))
    answers = run(engine, ["abc", "a" * 300, "def"])
    assert answers[0].text and answers[2].text and "303 tokens are more than the model reads" in answers[1].problem


def test_memory_that_runs_out_halves_the_batch(made, monkeypatch):
    engine = Seq2Seq(options(made("nllb"), batch_size=8))
    expected = run(engine)
    engine = Seq2Seq(options(made("nllb"), batch_size=8))
    sizes = []
    generate = Seq2Seq._generate

    def short_of_memory(self, ids, forced, limit):
        sizes.append(len(ids))
        if len(ids) > 2 or len(ids[0]) > 50:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more")
        return generate(self, ids, forced, limit)

    monkeypatch.setattr(Seq2Seq, "_generate", short_of_memory)
    answers = run(engine)
    assert sizes[0] > 2 and max(sizes[-3:]) <= 2
    for answer, before, segment in zip(answers, expected, SEGMENTS, strict=True):
        assert answer == before or (len(segment) > 45 and answer.passing and "memory ran out" in answer.problem)


def test_through_the_translator_and_its_cache(made, tmp_path):
    text = "abc def. Ghi jkl!\n\n- mno https://a.example/x pqr\n```\ncode\n```"
    settings = {"engine": "seq2seq", **options(made("nllb"))}
    translator = open_translator(settings, tmp_path)
    (first,) = translator.translate([text], "en", "sw")
    usage = translator.usage()
    assert usage["prompt_tokens"] > 0 and usage["completion_tokens"] > 0 and usage["segments"] >= 3
    translator.close()
    if first.text is not None:
        assert (
            "\n\n- " in first.text and first.text.endswith("\n```\ncode\n```") and "https://a.example/x" in first.text
        )
    translator = open_translator(settings, tmp_path)
    assert list(translator.translate([text], "en", "sw")) == [first]
    assert translator.usage()["requests"] == 0 and translator.usage()["cache_hits"] == usage["segments"]
    # other settings are other translations
    other = open_translator({**settings, "num_beams": 2}, tmp_path)
    list(other.translate([text], "en", "sw"))
    assert other.usage()["cache_hits"] == 0


def test_a_moved_model_is_the_same_and_a_changed_one_is_another(made, tmp_path):
    before = Seq2Seq(options(made("madlad"))).identity("en", "sw")
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in made("madlad").iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    assert Seq2Seq(options(moved)).identity("en", "sw") == before
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    assert Seq2Seq(options(moved)).identity("en", "sw")["model"] != before["model"]


def test_an_opus_model_for_the_other_direction_is_an_error(tmp_path):
    models.opus(tmp_path / "opus-mt-en-sw", stated=("en", "sw"))
    with pytest.raises(UserError, match="translates from en to sw, the other way round"):
        Seq2Seq(options(tmp_path / "opus-mt-en-sw")).identity("sw", "en")


def test_bad_models_and_languages_are_one_line(made, tmp_path):
    with pytest.raises(UserError, match=r"'yo'.*It knows 4 languages"):
        Seq2Seq(options(made("nllb"))).identity("en", "yo")
    with pytest.raises(UserError, match="cannot be opened as a model"):
        Seq2Seq(options(tmp_path / "nothing")).identity("en", "sw")
    llama = tmp_path / "llama"
    llama.mkdir()
    (llama / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"type llama; expected NLLB.*engine: chat"):
        Seq2Seq(options(llama)).identity("en", "sw")
    unsafe = tmp_path / "unsafe"
    unsafe.mkdir()
    for path in made("madlad").iterdir():
        if path.suffix != ".safetensors":
            (unsafe / path.name).write_bytes(path.read_bytes())
    torch.save({}, unsafe / "pytorch_model.bin")
    with pytest.raises(UserError, match="Only weights in safetensors"):
        run(Seq2Seq(options(unsafe)))
