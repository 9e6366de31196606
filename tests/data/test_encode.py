"""Token ids: the prompt's are those of inference, nothing is doubled, nothing is cut that must not be."""

from __future__ import annotations

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cctuning import UserError, data
from cctuning.data import Encoder

CHATML = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEXTS = ["Mji mkuu wa Kenya ni upi?", "What is the capital of Kenya?", "Nairobi ni mji mkuu.", "巴黎 是 法国 的 首都"]
OPEN = {"max_length": None, "max_reference_length": None}


def encode_row(row, tokenizer, **options):
    return Encoder(tokenizer, **options).encode_row(row)


def encode_dataset(rows, tokenizer, bad_rows="error", num_proc=None, notes=None, **options):
    how = {"bad_rows": bad_rows, "num_proc": num_proc, "notes": notes}
    return data.encode_dataset(rows, Encoder(tokenizer, **options), **how)


def bpe(template=CHATML):
    """Byte-level BPE; puts a bos before every text by itself, as the template does too."""
    special = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        TEXTS * 3,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    made.chat_template = template
    return made


def words(closes=True):
    """Whole words with a bos before and, where it `closes`, an eos after every text. No chat template."""
    vocab = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *"abcdefgh", "ab"])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(["<pad>", "<s>", "</s>"])
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if closes else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def tokens(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids)


ROW = {"prompt": "a b", "response": " c d", "reference": "e f g", "lang": "sw", "row": 7, "origin": "f.jsonl:3"}


@pytest.mark.parametrize("closes", [True, False])
def test_plain_text(closes):
    tokenizer = words(closes)
    encoded = encode_row(ROW, tokenizer, chat=False, **OPEN)
    assert tokens(tokenizer, encoded["input_ids"]) == ["<s>", "a", "b", "c", "d", "</s>"]
    assert encoded["labels"] == [-100] * 3 + encoded["input_ids"][3:]
    assert tokens(tokenizer, encoded["reference_input_ids"]) == ["<s>", "e", "f", "g"]  # its last token is the anchor
    assert (encoded["row"], encoded["lang"]) == (7, "sw")


def test_without_eos_or_response_or_reference():
    tokenizer = words()
    assert tokens(tokenizer, encode_row(ROW, tokenizer, chat=False, eos=False, **OPEN)["input_ids"])[-1] == "d"
    bare = encode_row({**ROW, "response": None, "reference": None}, tokenizer, chat=False, **OPEN)
    assert tokens(tokenizer, bare["input_ids"]) == ["<s>", "a", "b"]
    assert bare["labels"] == [-100] * 3 and bare["reference_input_ids"] == []


def test_specials_written_in_the_text_are_not_doubled():
    tokenizer = words()
    encoded = encode_row({"prompt": "<s> a", "response": " b </s>"}, tokenizer, chat=False, **OPEN)
    assert tokens(tokenizer, encoded["input_ids"]) == ["<s>", "a", "b", "</s>"]


@pytest.mark.parametrize("prompt, response", [("a", "b"), ("Mji mkuu wa Ke", "nya"), ("x ", " y"), ("法", "国")])
@pytest.mark.parametrize("make", [bpe, words])
def test_the_prompt_keeps_its_tokens_of_inference(make, prompt, response):
    """Also where the tokenizer would merge across the border (`a` + `b` is the word `ab`)."""
    tokenizer = make()
    encoded = encode_row({"prompt": prompt, "response": response}, tokenizer, chat=False, **OPEN)
    seen = Encoder(tokenizer).prompt_ids(prompt)
    assert seen == [id for id in tokenizer(prompt)["input_ids"] if id != tokenizer.eos_token_id]
    assert encoded["input_ids"][: len(seen)] == seen
    assert encoded["labels"][: len(seen)] == [-100] * len(seen) and -100 not in encoded["labels"][len(seen) :]


def test_chat():
    tokenizer = bpe()
    row = {"prompt": "Kenya?", "response": "Nairobi", "reference": "Kenya?"}
    encoded = encode_row(row, tokenizer, chat=True, **OPEN)
    prompt = "<bos><|im_start|>user\nKenya?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(encoded["input_ids"]) == prompt + "Nairobi<|im_end|>\n"  # one bos; no eos after the mark
    assert tokenizer.decode(encoded["reference_input_ids"]) == prompt
    trained = [id for id in encoded["labels"] if id != -100]
    assert tokenizer.decode(trained) == "Nairobi<|im_end|>\n"
    assert Encoder(tokenizer, chat=True).prompt_ids("Kenya?") == encoded["reference_input_ids"]


def test_chat_with_system_and_earlier_turns():
    tokenizer = bpe()
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "moja"},
        {"role": "assistant", "content": "sawa"},
        {"role": "user", "content": "mbili"},
    ]
    row = {"prompt": turns, "response": "tatu", "reference": [turns[0], {"role": "user", "content": "one"}]}
    encoded = encode_row(row, tokenizer, chat=True, **OPEN)
    assert tokenizer.decode([id for id in encoded["labels"] if id != -100]) == "sawa<|im_end|>tatu<|im_end|>\n"
    encoded = encode_row(row, tokenizer, chat=True, turns="last", **OPEN)
    assert tokenizer.decode([id for id in encoded["labels"] if id != -100]) == "tatu<|im_end|>\n"
    reference = tokenizer.decode(encoded["reference_input_ids"])
    assert reference == (
        "<bos><|im_start|>system\nS<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_that_renders_an_answered_turn_otherwise():
    thinking = CHATML.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'")
    tokenizer = bpe(thinking)
    encoded = encode_row({"prompt": "a", "response": "e"}, tokenizer, chat=True, **OPEN)
    text = tokenizer.decode(encoded["input_ids"])
    assert text == "<bos><|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\ne<|im_end|>\n"


def test_a_template_that_does_not_close_its_turn_gets_eos():
    tokenizer = bpe("{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}")
    encoded = encode_row({"prompt": "a", "response": "b"}, tokenizer, chat=True, **OPEN)
    assert tokenizer.decode(encoded["input_ids"]) == "user: a\nassistant: b\n<eos>"


def test_an_explicit_template_wins():
    tokenizer = bpe()
    encoded = encode_row({"prompt": "a"}, tokenizer, chat=True, chat_template="Q: {{ messages[0].content }}", **OPEN)
    assert tokenizer.decode(encoded["input_ids"]) == "Q: a"


def test_only_the_responses_end_is_cut():
    tokenizer = words()
    encoded = encode_row(ROW, tokenizer, chat=False, max_length=4, max_reference_length=4)
    assert tokens(tokenizer, encoded["input_ids"]) == ["<s>", "a", "b", "c"]
    assert encoded["labels"] == [-100, -100, -100, encoded["input_ids"][3]]
    notes = []
    options = {"chat": False, "max_length": 4, "max_reference_length": 4, "notes": notes}
    encode_dataset(Dataset.from_list([ROW, {**ROW, "prompt": "a", "response": "c"}]), tokenizer, **options)
    (note,) = notes
    assert note.startswith("1 of 2 rows (the first: f.jsonl:3): the response is cut at max_length: 4")
    assert len(encoded["reference_input_ids"]) == 4


def test_the_reference_has_a_budget_of_its_own():
    """PEER.md, defect 3: a short max_length of the row must not reach the reference."""
    long = {**ROW, "reference": "e " * 50}
    assert (
        len(encode_row(long, words(), chat=False, max_length=4, max_reference_length=None)["reference_input_ids"])
        == 51
    )


NO_TEMPLATE = "tokenizer .* has no chat template; set chat_template_path"
ERRORS = {
    "no room": (ROW, {"max_length": 3}, r"f.jsonl:3: response: no tokens .*prompt has 3 tokens.*max_length is 3"),
    "long prompt": ({**ROW, "response": None}, {"max_length": 2}, r"f.jsonl:3: prompt: 3 tokens, .* never cut"),
    "long reference": (
        ROW,
        {"max_reference_length": 3},
        r"f.jsonl:3: reference: 4 tokens, and max_reference_length is",
    ),
    "empty prompt": ({**ROW, "prompt": " "}, {}, r"f.jsonl:3: prompt: is empty after tokenisation"),
    "empty reference": ({**ROW, "reference": " "}, {}, r"f.jsonl:3: reference: is empty after tokenisation"),
    "empty response": ({**ROW, "response": " "}, {}, r"f.jsonl:3: response: is empty after tokenisation"),
    "messages": ({**ROW, "prompt": [{"role": "user", "content": "a"}]}, {}, r"f.jsonl:3: prompt: .* chat is off"),
    "no template": (ROW, {"chat": True}, NO_TEMPLATE),
}


@pytest.mark.parametrize("row, options, message", ERRORS.values(), ids=ERRORS)
def test_errors_name_the_row_and_the_option(row, options, message):
    with pytest.raises(UserError, match=message):
        encode_row(row, words(), **{"chat": False, **OPEN, **options})


def test_a_tokenizer_without_eos():
    tokenizer = words()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no eos token"):
        encode_row(ROW, tokenizer, chat=False, **OPEN)


def test_a_template_that_refuses_names_the_row():
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    tokenizer = bpe(refusal + "{{ messages[-1].content }}")
    row = {"prompt": [{"role": "system", "content": "s"}], "origin": "f.jsonl:9"}
    with pytest.raises(UserError, match=r"f.jsonl:9: prompt: the chat template rejects .*no system turn"):
        encode_row(row, tokenizer, chat=True, **OPEN)


ROWS = [
    {
        "prompt": "a b",
        "response": " c d" if i % 3 else None,
        "reference": None if i % 4 == 0 else "e f" * i,
        "lang": "sw",
        "origin": f"f:{i}",
        "row": i,
    }
    for i in range(1, 9)
]


@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_data_set_is_encoded_as_its_rows(num_proc):
    tokenizer = words()
    encoded, skipped = encode_dataset(Dataset.from_list(ROWS), tokenizer, chat=False, num_proc=num_proc, **OPEN)
    assert skipped == []
    assert encoded.column_names == [
        *("input_ids", "labels", "reference_input_ids", "text", "reference_text", "row", "lang")
    ]
    assert list(encoded) == [encode_row(row, tokenizer, chat=False, **OPEN) for row in ROWS]


@pytest.mark.parametrize("num_proc", [None, 2])
def test_bad_rows_of_a_data_set(num_proc):
    options = {"chat": False, "max_length": 3, "max_reference_length": None, "num_proc": num_proc}
    with pytest.raises(UserError, match=r"f:\d: response: no tokens of it would be left"):
        encode_dataset(Dataset.from_list(ROWS), words(), **options)
    encoded, skipped = encode_dataset(Dataset.from_list(ROWS), words(), bad_rows="skip", **options)
    assert encoded["row"] == [3, 6]
    assert [origin for origin, _ in skipped] == [f"f:{i}" for i in (1, 2, 4, 5, 7, 8)]
    assert all(reason.startswith("response: no tokens") for _, reason in skipped)
    with pytest.raises(UserError, match=r"no usable row of 8, the first: f:1: "):
        encode_dataset(Dataset.from_list(ROWS), words(), bad_rows="skip", **{**options, "max_length": 2})


def test_conversations_in_a_data_set():
    turns = [{"role": "user", "content": "Kenya?"}]
    rows = [{"prompt": turns, "response": "x", "reference": ref, "lang": "sw", "row": 0} for ref in (turns, None)]
    encoded, _ = encode_dataset(Dataset.from_list(rows), bpe(), chat=True, **OPEN)
    assert encoded[0]["reference_input_ids"] and encoded[1]["reference_input_ids"] == []


def test_the_response_never_changes_the_reference():
    one, other = (encode_row({**ROW, "response": r}, words(), chat=False, **OPEN) for r in (" c", " h h h"))
    assert one["reference_input_ids"] == other["reference_input_ids"]
