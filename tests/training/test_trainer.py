"""CCTrainer end to end on toys: it learns, resumes exactly, saves what it should, and stops when it must."""

from __future__ import annotations

import json
import re

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file

from cctuning import CCConfig, CCTrainer, ConnectedModel, ConnectionConfig, UserError
from cctuning.model.connected import ATTRIBUTE
from cctuning.training.options import RunOptions
from tests.families import build, multimodal
from tests.training.toys import model, rows, tokenizer


def config(path, **options) -> CCConfig:
    defaults = {
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "gradient_checkpointing": False,
    }
    return CCConfig(str(path), **{**defaults, **options})


def trainer(path, connection=None, peft_config=None, base=None, train=None, callbacks=None, **options) -> CCTrainer:
    return CCTrainer(
        base if base is not None else model(),
        config(path, **options),
        ConnectionConfig(**{"connection": "gated", **(connection or {})}),
        train_dataset=rows() if train is None else train,
        processing_class=tokenizer(),
        peft_config=peft_config,
        callbacks=callbacks,
    )


CURRENT = {"reference_weights": "current"}  # rows in the reference language then have no reference


def losses(made: CCTrainer) -> list[float]:
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


def weights(made: CCTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in made.model.named_parameters()}


@pytest.mark.parametrize(
    "connection",
    [
        {},
        {"paths": "both", "distill_weight": 0.5},
        {"paths": "student", "decision": "fixed", "decision_value": 1.0, "transform": "none", "align_weight": 5.0},
        {"connection": "none"},
        {"connection": "adaptive"},
        {"paths": "fused"},
    ],
    ids=["cc", "both", "align", "vanilla", "adaptive", "fused"],
)
def test_every_recipe_trains_through_the_same_trainer(connection, tmp_path):
    made = trainer(tmp_path, connection, max_steps=30)
    before = weights(made)
    made.train()
    assert losses(made)[-1] < losses(made)[0]
    moved = {name for name, tensor in weights(made).items() if not torch.equal(tensor, before[name])}
    still = {name for name, p in made.model.named_parameters() if p.requires_grad} - moved
    assert not still


@pytest.mark.parametrize("lora", [False, True])
def test_of_a_multimodal_model_the_text_part_trains(lora, tmp_path):
    """Other weights get no gradient, for which DDP would wait, and a LoRA there would be saved for nothing."""
    base = multimodal()
    peft = RunOptions(model="m", tune="lora").lora(base) if lora else None
    made = trainer(tmp_path, {"connection": "align"}, peft, base, max_steps=1)
    batch = next(iter(made.get_train_dataloader()))
    made.make_recording()
    made.model.train()
    made.compute_loss(made.model, batch).backward()
    trained = {name: weight for name, weight in made.model.named_parameters() if weight.requires_grad}
    assert trained and all(weight.grad is not None for weight in trained.values())
    assert lora or any(
        re.match(r"model\.multi_modal_projector, model\.vision_tower: not trained", n) for n in made.notes
    )
    assert all("language_model" in name for name in dict(made.model.named_parameters()) if "lora_" in name)


def test_same_seed_same_result(tmp_path):
    one, other = trainer(tmp_path / "a"), trainer(tmp_path / "b")
    one.train(), other.train()
    assert losses(one) == losses(other)
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


@pytest.mark.parametrize("peft", [False, True])
def test_kill_and_resume_gives_the_same_curve(peft, tmp_path):
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear") if peft else None
    whole = trainer(tmp_path / "whole", peft_config=lora, max_steps=8)
    whole.train()
    trainer(tmp_path / "cut", peft_config=lora, max_steps=8, save_strategy="steps", save_steps=5).train()
    resumed = trainer(tmp_path / "cut", peft_config=lora, max_steps=8, save_strategy="steps", save_steps=5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-5"))
    assert losses(resumed) == losses(whole)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name


def test_a_family_that_is_converted_on_loading_resumes_exactly(tmp_path):
    """Its checkpoints have the layout of its modules, which from_pretrained reads too."""
    saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path / "run", base=build("mixtral"), **saving)
    whole.train()
    resumed = trainer(tmp_path / "run", base=build("mixtral"), **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert losses(resumed) == losses(whole)
    loaded = type(whole.model).from_pretrained(tmp_path / "run" / "checkpoint-4")
    for name, tensor in loaded.named_parameters():
        assert torch.equal(tensor, whole.model.get_parameter(name)), name


def test_accumulated_steps_equal_one_large_batch(tmp_path):
    """Rows and tokens are counted over the whole step: 2 x 4 rows give the gradient of 8."""
    large = trainer(tmp_path / "a", per_device_train_batch_size=8, max_steps=3, optim="sgd")
    small = trainer(
        tmp_path / "b", per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=3, optim="sgd"
    )
    large.train(), small.train()
    for name, tensor in weights(large).items():
        torch.testing.assert_close(weights(small)[name], tensor, rtol=1e-4, atol=1e-6)


def test_connection_has_its_own_learning_rate(tmp_path):
    made = trainer(tmp_path, connection_lr_scale=3.0)
    made.create_optimizer()
    names = {id(p): name for name, p in made.model.named_parameters()}
    for group in made.optimizer.param_groups:
        for parameter in group["params"]:
            ours = ATTRIBUTE in names[id(parameter)]
            assert group["lr"] == pytest.approx(5e-3 * (3 if ours else 1))
    counted = sum(len(group["params"]) for group in made.optimizer.param_groups)
    assert counted == sum(p.requires_grad for p in made.model.parameters())


def test_saved_model_is_a_plain_base_with_the_connection_beside_it(tmp_path):
    made = trainer(tmp_path / "run")
    made.train()
    made.save_model(str(tmp_path / "model"))
    assert not any(ATTRIBUTE in name for name in load_file(tmp_path / "model" / "model.safetensors"))
    base = type(made.model).from_pretrained(tmp_path / "model")
    again = ConnectedModel.from_pretrained(base, tmp_path / "model").eval()
    ids = torch.arange(6, 18)[None]
    assert torch.equal(again(ids).logits, made.connected.eval()(ids).logits)
    assert json.loads((tmp_path / "model" / "connection_config.json").read_text())["base"]["trained"] is True


def test_lora_on_the_base_with_the_connection(tmp_path):
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    made = trainer(tmp_path / "run", peft_config=lora)
    trainable = {name for name, p in made.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or ATTRIBUTE in name for name in trainable)
    assert not any("lora_" in name and ATTRIBUTE in name for name in trainable)  # all-linear does not wrap our parts
    made.train()
    made.save_model(str(tmp_path / "model"))
    assert not any(ATTRIBUTE in name for name in load_file(tmp_path / "model" / "adapter_model.safetensors"))
    again = ConnectedModel.from_pretrained(PeftModel.from_pretrained(model(), tmp_path / "model"), tmp_path / "model")
    ids = torch.arange(6, 18)[None]
    torch.testing.assert_close(again.eval()(ids).logits, made.connected.eval()(ids).logits)


def test_evaluation_loss_is_the_student_passes(tmp_path):
    made = trainer(tmp_path, train=rows(), max_steps=2)
    metrics = made.evaluate(rows(12, seed=9))
    encoded = made._prepare_dataset(rows(12, seed=9), made.processing_class, made.args, False, None, "eval")
    batch = made.data_collator([encoded[i] for i in range(8)])
    expected = made.connected.eval()(**{k: batch[k] for k in ("input_ids", "attention_mask", "labels")}).loss
    got = made.connected(**{k: v for k, v in batch.items() if k != "row"})
    assert torch.allclose(got.loss, expected)
    assert {"eval_loss", "eval_fused_loss", "eval_align_loss"} <= set(metrics) and "eval_student_loss" not in metrics
    for size in (1, 5, 12):  # a mean over batches would weigh rows differently
        again = trainer(tmp_path, train=rows(), max_steps=2, per_device_eval_batch_size=size)
        other = again.evaluate(rows(12, seed=9))
        for name in ("eval_loss", "eval_fused_loss", "eval_align_loss", "eval_loss_qaa"):
            assert other[name] == pytest.approx(metrics[name], rel=1e-5), name


def test_gradient_checkpointing_changes_nothing(tmp_path):
    plain = trainer(tmp_path / "a", max_steps=3)
    plain.train()
    for reentrant in (False, True):
        options = {"use_reentrant": reentrant}
        other = trainer(
            tmp_path / "b", max_steps=3, gradient_checkpointing=True, gradient_checkpointing_kwargs=options
        )
        other.train()
        assert losses(other) == pytest.approx(losses(plain), rel=1e-4)


@pytest.mark.slow  # tracing
def test_compiled_it_trains_as_ever(tmp_path):
    plain = trainer(tmp_path / "a", max_steps=3)
    plain.train()
    torch._dynamo.reset()
    compiled = trainer(tmp_path / "b", max_steps=3, torch_compile=True, torch_compile_backend="aot_eager")
    compiled.train()
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)


def test_loss_that_is_not_finite_stops_the_run_and_names_rows(tmp_path):
    broken = model()
    broken.model.embed_tokens.weight.data[10] = torch.nan
    made = trainer(tmp_path, base=broken)
    with pytest.raises(UserError, match=r"loss is nan at rows\.jsonl:\d+.*learning_rate"):
        made.train()


def test_metrics_are_logged_by_name(tmp_path):
    made = trainer(tmp_path, {"paths": "both"})
    made.train()
    logged = set().union(*made.state.log_history)
    wanted = {"student_loss", "fused_loss", "align_loss", "identity_loss", "decision", "mean_token_accuracy"}
    assert wanted <= logged


def test_trl_names_for_columns_are_understood(tmp_path):
    renamed = rows().rename_columns({"response": "completion", "reference": "prompt_en"}).remove_columns("row")
    made = trainer(tmp_path, CURRENT, train=renamed)
    assert sum(bool(r) for r in made.train_dataset["reference_input_ids"]) == sum(
        r is not None for r in rows()["reference"]
    )


def test_another_reference_language(tmp_path):
    renamed = rows().rename_column("reference", "prompt_fr")
    renamed = renamed.map(lambda row: {"lang": "fr" if row["lang"] == "en" else row["lang"]})
    made = trainer(tmp_path, train=renamed, reference_language="fr", max_steps=1)
    made.train()
    made.save_model(str(tmp_path / "model"))
    assert json.loads((tmp_path / "model" / "connection_config.json").read_text())["reference_language"] == "fr"


def test_tokenizer_without_pad_token_pads_with_eos(tmp_path):
    made = CCTrainer(
        model(),
        config(tmp_path),
        ConnectionConfig("gated"),
        train_dataset=rows(),
        processing_class=tokenizer(pad=False),
    )
    made.train()
    bare = tokenizer(pad=False)
    bare.eos_token = None
    with pytest.raises(ValueError, match=r"`pad_token` \('None'\) is not found"):
        CCTrainer(
            model(),
            config(tmp_path),
            ConnectionConfig("gated"),
            train_dataset=rows(),
            processing_class=bare,
        )


def test_a_row_in_the_reference_language_is_its_own_parallel(tmp_path):
    """Also where its parallel's column is filled with the prompt itself."""
    filled = rows().map(lambda row: {"reference": row["reference"] or row["prompt"]})
    made = trainer(tmp_path, CURRENT, train=filled)
    english = [
        bool(ids)
        for ids, row in zip(made.train_dataset["reference_input_ids"], rows(), strict=True)
        if row["lang"] == "en"
    ]
    assert english and not any(english)
    assert any(made.train_dataset["reference_input_ids"])
