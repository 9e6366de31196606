"""The cut checkpoint is the whole one for the texts that it was cut to."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cctuning.errors import UserError
from experiments.real.vocabulary import cut_checkpoint, used_tokens
from tests.experiments.conftest import LABELS, TEXT


@pytest.fixture
def cut(whole, tmp_path):
    texts = [*TEXT, *(f"{text}\n{label}" for text in TEXT for label in LABELS), "geography"]
    cut_checkpoint(whole, used_tokens(whole, texts), tmp_path, texts)
    return tmp_path


def test_same_tokens_and_logits(whole, cut):
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (whole, cut))
    one, two = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (whole, cut))
    assert two.config.vocab_size < one.config.vocab_size / 2
    text = TEXT[0] + "\ngeography"
    assert before.tokenize(text) == after.tokenize(text)
    old_places, new_places = before.get_vocab(), after.get_vocab()  # in another order at every call
    kept = torch.tensor([old_places[token] for token in new_places])
    new = torch.tensor(list(new_places.values()))
    known = new < two.config.vocab_size
    with torch.no_grad():
        old_logits = one(torch.tensor([before(text)["input_ids"]])).logits[0]
        new_logits = two(torch.tensor([after(text)["input_ids"]])).logits[0]
    torch.testing.assert_close(new_logits[:, new[known]], old_logits[:, kept[known]])


def test_special_tokens_keep_their_meaning(cut):
    tokenizer = AutoTokenizer.from_pretrained(cut)
    config = json.loads((cut / "config.json").read_text())
    assert tokenizer("geography")["input_ids"][0] == tokenizer.bos_token_id == config["bos_token_id"]
    assert config["eos_token_id"] == tokenizer.eos_token_id


def test_a_text_that_would_be_read_otherwise_is_refused(whole, tmp_path):
    kept = used_tokens(whole, [TEXT[0]])
    with pytest.raises(UserError, match="other tokens for 'daktari"):
        cut_checkpoint(whole, kept, tmp_path, ["daktari"])
