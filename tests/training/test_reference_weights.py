"""`reference_weights: start`: what is aligned to stands still, English too, and what it costs is kept to training."""

from __future__ import annotations

import copy
from collections import namedtuple

import pytest
import torch
from peft import LoraConfig

from cctuning import ConnectedModel, ConnectionConfig, UserError
from cctuning.model.passes import Batch
from cctuning.model.recorded import Prompts, record
from cctuning.training.recording import Recording, distinct
from tests.conftest import paired_batch, shake, tiny_llama
from tests.parity.test_invariants import assert_same, gradients
from tests.training.test_trainer import CURRENT, losses, rows, trainer

START = {"reference_weights": "start"}


def attach(model=None, **options) -> ConnectedModel:
    connected = ConnectedModel.attach(model or tiny_llama(), ConnectionConfig("gated", **START, **options))
    shake(connected)
    connected.total_steps = 2
    return connected.train()


def recorded(connected: ConnectedModel, batch: dict) -> dict:
    """The batch with its references recorded through the model as it is now."""
    masks, given = batch["reference_attention_mask"], batch["reference_input_ids"]
    ids = [row[mask.bool()].tolist() for row, mask in zip(given, masks, strict=True)]
    connected.keep_recorded(record(connected, Prompts(ids, torch.tensor([[0, len(row)] for row in ids]))))
    kept = {name: value for name, value in batch.items() if not name.startswith("reference_")}
    return kept | {"reference_row": batch["reference_index"]}


def test_recorded_references_are_the_live_ones_and_stand_still(batch):
    """Also under dropout."""
    connected = attach(tiny_llama(attention_dropout=0.5))
    rows = recorded(connected, batch)
    live = connected.eval().reference_pass(Batch.take(dict(batch))).memory
    kept = connected.recorded.take(torch.arange(connected.recorded.size))
    for layer, (vectors, _) in live.items():
        torch.testing.assert_close(kept[layer], vectors)
    with torch.no_grad():
        for parameter in connected.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    trained = {name: parameter.clone() for name, parameter in connected.named_parameters()}
    connected.train()(**rows)
    for layer, vectors in connected.recorded.take(torch.arange(connected.recorded.size)).items():
        assert torch.equal(vectors, kept[layer])
        assert not torch.equal(vectors, connected.reference_pass(Batch.take(dict(batch))).memory[layer][0])
    for name, parameter in connected.named_parameters():
        assert torch.equal(parameter, trained[name]), name


def test_new_tokens_of_tied_embeddings_train(tmp_path):
    """PEFT puts one module with their rows into the model under two names."""
    tokens = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], trainable_token_indices=[*range(6, 30)])
    made = trainer(tmp_path, START, tokens, base=tiny_llama(layers=2, tie_word_embeddings=True), learning_rate=1e-2)
    name = next(name for name, _ in made.model.named_parameters() if "trainable_tokens_delta" in name)
    before = made.model.get_parameter(name).detach().clone()
    made.train()
    after = made.model.get_parameter(name)
    assert isinstance(after, torch.nn.Parameter) and not torch.equal(before, after)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("paths", ["sampled", "both", "student"])
def test_gradients_are_the_same_with_checkpointing(use_reentrant, paths, batch):
    connected = attach(paths=paths)
    batch = recorded(connected, batch)
    with torch.no_grad():
        for parameter in connected.model.parameters():
            parameter.add_(0.01)
    connected.model.enable_input_require_grads()
    plain = gradients(connected, batch)
    connected.model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_same(plain, gradients(connected, batch))


def test_a_row_that_is_its_own_parallel_draws_english_back():
    """Nothing while the model is where it started; afterwards a pull on every tuned layer, towards what it was."""
    batch = paired_batch(rows=2)
    prompt = batch["labels"][:, :-1].eq(-100) & batch["labels"][:, 1:].eq(-100) & batch["attention_mask"][:, 1:].bool()
    width = int(prompt.sum(dim=1).max()) + 1
    mask = torch.arange(width) <= prompt.sum(dim=1, keepdim=True)
    batch["reference_input_ids"] = batch["input_ids"][:, :width] * mask
    batch["reference_attention_mask"] = mask.long()
    batch["reference_index"] = torch.arange(2)
    options = {"decision": "fixed", "decision_value": 1.0, "transform": "none", "align_weight": 100.0}
    connected = attach(paths="student", **options)
    batch = recorded(connected, batch)
    assert connected(**batch).align_loss < 1e-10
    with torch.no_grad():
        for parameter in connected.model.parameters():
            parameter.mul_(1.05)
    far = connected(**batch).align_loss
    assert far > 1e-3
    optimizer = torch.optim.Adam((p for p in connected.parameters() if p.requires_grad), lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        connected(**batch).loss.backward()
        optimizer.step()
    assert connected(**batch).align_loss < 0.5 * far


def test_the_trainer_pairs_rows_of_the_reference_language_with_themselves(tmp_path):
    own = trainer(tmp_path / "own", START)
    given = trainer(tmp_path / "given", CURRENT)
    mine, theirs = own.train_dataset, given.train_dataset
    english = [i for i, row in enumerate(theirs) if not row["reference_input_ids"]]
    assert english and any(row["reference_input_ids"] for row in theirs)
    for i in english:
        prompt = [token for token, label in zip(mine[i]["input_ids"], mine[i]["labels"], strict=True) if label == -100]
        assert mine[i]["reference_input_ids"] == prompt
    assert len(mine) == len(theirs) == len(rows())
    own.train()
    assert losses(own)[-1] < losses(own)[0]


def test_the_copy_for_the_decay_is_of_what_trains_alone(tmp_path):
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    made = trainer(tmp_path / "lora", START, peft_config=lora, base_decay=5.0)
    decay = next(one for one in made.callback_handler.callbacks if type(one).__name__ == "BaseDecay")
    assert decay.start and all("lora_" in name for name in decay.start)


def test_without_room_on_the_disk_the_recording_is_kept_in_memory(tmp_path, monkeypatch, caplog):
    """The run is the same, and so is a resumed one, whose checkpoint is loaded after the recording."""
    options = {"max_steps": 4, "save_steps": 2, "save_strategy": "steps"}
    runs = [trainer(tmp_path / "disk", {}, **options)]
    runs[0].train()
    monkeypatch.setenv("CC_TUNING_CACHE", "/dev/null/none")
    runs += [trainer(tmp_path / "memory", {}, record_references=option, **options) for option in ("auto", "true")]
    for made in runs[1:]:
        made.train()
    assert "kept in memory, for this run alone: /dev/null: not a directory" in caplog.text
    resumed = trainer(tmp_path / "memory", {}, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "memory" / "checkpoint-2"))
    for made in (*runs, resumed):
        assert made.recording.whole and made.connected.config.reference_weights == "start"
        for name, parameter in runs[0].model.named_parameters():
            assert torch.equal(parameter, made.model.get_parameter(name)), name


@pytest.mark.parametrize("too", ["large", "sharded"])
def test_a_recording_for_which_there_is_no_room_is_an_error(too, tmp_path, monkeypatch):
    """References through the current weights would be another objective."""
    full = namedtuple("usage", "total used free")(1, 1, 0)
    monkeypatch.setattr("cctuning.model.recorded.shutil.disk_usage", lambda path: full)
    monkeypatch.setenv("CC_TUNING_CACHE", str(tmp_path / "cache"))
    if too == "large":
        monkeypatch.setattr("cctuning.training.recording.RESIDENT", 100)
    made = trainer(tmp_path, {}, record_references="false")
    recording = Recording(made, distinct(made.table)[0])
    recording.sharded = too == "sharded"
    with pytest.raises(
        UserError, match=r"record_references: .* need .*, which has 0.0 MB free. Free disk space, set CC"
    ):
        recording.find_room()


@pytest.mark.parametrize(
    "connection",
    [{"connection": "align", "align_loss": loss} for loss in ("standardized", "contrastive", "relative")]
    + [{"connection": "gated"}],
)
def test_references_stored_in_half_the_space(connection, tmp_path, monkeypatch):
    """`record_dtype`: bf16 for a model in bf16; rounding hardly changes what is trained, and the files stay apart."""
    monkeypatch.setenv("CC_TUNING_CACHE", str(tmp_path / "cache"))
    found, sizes = {}, {}
    for dtype in ("float32", "bfloat16", "bfloat16"):  # the last reads what the one before recorded
        made = trainer(tmp_path / dtype, connection, record_dtype=dtype)
        file = made.recording.file()  # its name has the weights before training
        assert file.is_file() == (dtype in found)
        made.train()
        assert made.connected.recorded.vectors.dtype == getattr(torch, dtype)
        found.setdefault(dtype, []).append(losses(made))
        sizes[dtype] = file.stat().st_size
    assert found["bfloat16"][0] == found["bfloat16"][1] != found["float32"][0]
    torch.testing.assert_close(
        torch.tensor(found["bfloat16"][0]), torch.tensor(found["float32"][0]), rtol=0.02, atol=0
    )
    assert 2 * sizes["bfloat16"] == sizes["float32"]


def test_stored_in_bf16_packed_with_a_lora_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setenv("CC_TUNING_CACHE", str(tmp_path / "cache"))
    options = {
        "record_dtype": "bfloat16",
        "packing": True,
        "max_length": 64,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    runs = []
    for checkpoint in (None, str(tmp_path / "run" / "checkpoint-2")):
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
        made = trainer(tmp_path / "run", {"connection": "align"}, peft_config=lora, **options)
        made.train(resume_from_checkpoint=checkpoint)
        assert made.connected.recorded.vectors.dtype == torch.bfloat16
        runs.append(losses(made))
    assert runs[0] == runs[1]


@pytest.mark.parametrize(("dtype", "stored"), [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_a_model_in_bf16_stores_its_references_in_bf16(dtype, stored, tmp_path):
    made = trainer(tmp_path, {}, base=tiny_llama().to(dtype))
    made.train()
    assert made.connected.recorded.vectors.dtype == stored


@pytest.mark.parametrize(
    ("connection", "settled"),
    [
        ({}, "start"),
        (CURRENT, "current"),
        ({"alignment": "attention"}, "current"),
        ({"connection": "adaptive"}, "current"),
        ({"connection": "none"}, "current"),
    ],
)
def test_the_start_is_the_default_where_it_can_be_kept(connection, settled, tmp_path):
    made = trainer(tmp_path, connection)
    assert made.connected.config.reference_weights == settled and (made.recording is not None) == (settled == "start")
    made = trainer(tmp_path, connection, record_references="false")
    assert made.connected.config.reference_weights == "current" and made.recording is None


def test_a_saved_connection_runs_as_ever(tmp_path, batch):
    """Of the recording nothing is saved: inference and evaluation run what was trained."""
    made = trainer(tmp_path / "run", START)
    made.train()
    made.save_model(str(tmp_path / "model"))
    again = ConnectedModel.from_pretrained(
        type(made.model).from_pretrained(tmp_path / "model"), tmp_path / "model"
    ).eval()
    assert again.recorded is None and again.config.reference_weights == "start"
    inputs = {name: batch[name] % 32 for name in ("input_ids", "reference_input_ids")} | {
        "reference_index": batch["reference_index"]
    }
    made.connected.eval()
    torch.testing.assert_close(again(**inputs).logits, made.connected(**inputs).logits)
    assert torch.isfinite(again(**inputs, labels=inputs["input_ids"]).loss)


def test_what_cannot_be_is_one_line(batch, tmp_path):
    with pytest.raises(UserError, match="start is not supported with connection: adaptive"):
        ConnectionConfig(**START, connection="adaptive")
    with pytest.raises(UserError, match="align_loss: standardized needs the spread of recorded references"):
        ConnectionConfig("gated", align_loss="standardized", alignment="attention")
    with pytest.raises(UserError, match="reference_weights: 'begin' is not one of"):
        ConnectionConfig("gated", reference_weights="begin")
    connected = ConnectedModel.attach(copy.deepcopy(tiny_llama()), ConnectionConfig("gated", **START)).train()
    connected.total_steps = 2
    with pytest.raises(UserError, match=r"give reference_row after keep_recorded\(\)"):
        connected(**batch)
    with pytest.raises(UserError, match=r"start needs recorded references \(record_references: false\); set"):
        trainer(tmp_path, START, record_references="false")
    with pytest.raises(UserError, match=r"start needs recorded references \(alignment: attention keeps every token"):
        trainer(tmp_path, START | {"alignment": "attention"})
