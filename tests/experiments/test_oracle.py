"""English activations put into another language's pass."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.real import oracle
from experiments.real.oracle import Asked, Place, Swap, _end, places, scores
from experiments.real.scoring import encode, likelihoods
from experiments.real.worlds import BREAK, Item

TEXTS = {
    "en": ["the river runs by the old town", "the team won"],
    "sw": ["mto unapita karibu na mji", "timu ilishinda"],
}
NAMES = {"en": ["river", "team"], "sw": ["mto", "timu"]}


def questions(tokenizer, lang):
    found = []
    for text, name in zip(TEXTS[lang], NAMES[lang], strict=True):
        item = Item(text, text + BREAK, ("sports", "health"), 0)
        encoded = encode(tokenizer, [item], chat=False)[0]
        found.append(Asked(item, encoded, _end(tokenizer, encoded[0], name)))
    return found


def test_the_name_ends_at_its_last_token(whole):
    tokenizer = AutoTokenizer.from_pretrained(whole)
    one = questions(tokenizer, "en")[0]
    ids = one.encoded[0]
    assert "river" in tokenizer.decode(ids[: one.subject + 1]) and "river" not in tokenizer.decode(ids[: one.subject])


def test_english_activations_bring_english_answers(whole, monkeypatch):
    monkeypatch.setattr(oracle, "amp", lambda: None)
    model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(whole)
    english, own = (questions(tokenizer, lang) for lang in ("en", "sw"))
    plain = {
        lang: likelihoods(model, [one.encoded for one in found]) for lang, found in (("en", english), ("sw", own))
    }
    swap, layers = Swap(model), len(model.model.layers)
    scores(model, swap, own, english, None)
    for where in places(layers):  # its own activations change nothing
        scores(model, swap, own, own, where)
        assert likelihoods(model, [one.encoded for one in own]) == plain["sw"]
    scores(model, swap, own, english, Place("residual", "prompt", (layers - 1,)))
    after = likelihoods(model, [one.encoded for one in own])  # the swap is still in place
    assert [firsts for firsts, _ in after] == [firsts for firsts, _ in plain["en"]]
    assert plain["en"] != plain["sw"]
    scores(model, swap, own, english, Place("ffn", "subject", tuple(range(layers))))
    assert likelihoods(model, [one.encoded for one in own]) != plain["sw"]
