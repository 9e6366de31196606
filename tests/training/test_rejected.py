"""Options and rows that cannot be, or would be ignored, raise an error or are noted."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from cctuning import CCTrainer, ConnectionConfig, UserError
from cctuning.training.directory import claim, write_record
from cctuning.training.schedule import filler
from tests.conftest import tiny_llama
from tests.training import aligned, test_trainer
from tests.training.aligned import english, pairs
from tests.training.test_trainer import config, losses
from tests.training.toys import model, rows, tokenizer


@pytest.mark.parametrize("which", ["data", "parallel", "eval_data"])
def test_rows_of_every_kind_fit_the_model_from_python_too(which, tmp_path):
    long = Dataset.from_dict({"text": ["x1 " * 40] * 2, "reference": ["w1"] * 2, "lang": ["sw"] * 2})
    asked = Dataset.from_dict({"prompt": ["x1 " * 40], "response": ["w2"], "lang": ["sw"], "reference": ["w1"]})
    with pytest.raises(UserError, match=r"max_length: a row has .* tokens, and the model has 32 positions"):
        CCTrainer(
            tiny_llama(layers=2, max_position_embeddings=32),
            config(tmp_path),
            train_dataset=asked if which == "data" else english(),
            parallel_dataset=long if which == "parallel" else pairs(),
            eval_dataset=asked if which == "eval_data" else None,
            processing_class=tokenizer(),
        )


def test_bad_pairs_are_left_out_from_python_too(tmp_path):
    text = Dataset.from_dict({"text": ["x1 x2", " ", "x3"], "reference": ["w1 w2", "w1", "w3"], "lang": ["sw"] * 3})
    with pytest.raises(UserError, match="row 1: text: the prompt is empty"):
        aligned.trainer(tmp_path, None, english(), pairs=text)
    made = aligned.trainer(tmp_path, None, english(), pairs=text, bad_rows="skip")
    assert len(made.parallel) == 4 and len(made.skipped) == 1


@pytest.mark.parametrize("packing", [False, True])
def test_no_batch_at_all_is_an_error(packing, tmp_path):
    options = {"dataloader_drop_last": True, "per_device_train_batch_size": 64, "packing": packing, "max_length": 40}
    with pytest.raises(UserError, match="dataloader_drop_last: 24 rows do not fill one batch"):
        test_trainer.trainer(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_steps": 0}, "max_steps: 0 trains nothing"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size: not supported"),
        ({"accelerator_config": {"dispatch_batches": True}}, "accelerator_config: dispatch_batches is not supported"),
        ({"accelerator_config": {"split_batches": True}}, "accelerator_config: split_batches is not supported"),
        ({"dataset_kwargs": {"skip_prepare_dataset": True}}, "skip_prepare_dataset is not supported"),
    ],
)
def test_options_that_would_be_ignored(options, said, tmp_path):
    with pytest.raises(UserError, match=said):
        config(tmp_path, **options)


def test_arguments_that_would_be_ignored(tmp_path):
    def made(connection="gated", train=None, **given):
        base = model()
        if given.pop("optimizer", False):
            given["optimizers"] = (torch.optim.SGD(base.parameters(), lr=0.1), None)
        return CCTrainer(
            base,
            config(tmp_path, pad_token=given.pop("pad_token", None)),
            ConnectionConfig(connection),
            train_dataset=train or rows(),
            processing_class=tokenizer(),
            **given,
        )

    with pytest.raises(UserError, match="compute_loss_func: not supported"):
        made(compute_loss_func=lambda *args, **kwargs: None)
    with pytest.raises(UserError, match="formatting_func: not supported"):
        made(formatting_func=str)
    with pytest.raises(UserError, match="optimizers: the optimizer was made before the connection"):
        made(optimizer=True)
    made("align", optimizer=True).train()
    with pytest.raises(UserError, match="train_dataset: rows are tokenised already"):
        made(train=Dataset.from_dict({"input_ids": [[7, 8]], "labels": [[7, 8]]}))
    assert made(pad_token="<unk>").data_collator.pad_token_id == tokenizer().unk_token_id
    with pytest.raises(ValueError, match=r"`pad_token` \('<no>'\) is not found"):
        made(pad_token="<no>")


def test_the_best_weights_of_several_evaluation_sets_are_those_of_one(tmp_path):
    def made(metric=None):
        options = {"early_stopping_patience": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
        return CCTrainer(
            model(),
            config(tmp_path, metric_for_best_model=metric, **options),
            ConnectionConfig("none"),
            train_dataset=rows(),
            eval_dataset={"home": rows(4), "away": rows(4)},
            processing_class=tokenizer(),
        )

    with pytest.raises(UserError, match=r"metric_for_best_model: loss: .* set it to eval_home_loss or eval_away_loss"):
        made()
    made("eval_away_loss").train()


@pytest.mark.parametrize("answered", [None, english()])
def test_an_alignment_below_all_weights_that_train_is_an_error(answered, tmp_path):
    def made(layer):
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], layers_to_transform=[layer])
        return aligned.trainer(tmp_path, {"layers": [0]}, answered, peft=lora, max_steps=2)

    made(0).train()
    with pytest.raises(UserError, match=r"layers: \[0\]: no weight at or below the last aligned layer trains"):
        made(1)


@pytest.mark.parametrize("connection", ["align", "gated"])
def test_a_process_that_counts_its_own_rows_and_has_none_left(connection, tmp_path):
    made = aligned.trainer(tmp_path, {"connection": connection}, rows(), average_tokens_across_devices=False)
    made.make_recording()
    batch = made.data_collator(list(filler(made.table)))
    batches, items = made.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    made.model.train()
    loss = made.compute_loss(made.model, batches[0], num_items_in_batch=items)
    assert float(loss) == 0


def test_a_checkpoint_without_its_optimizer_says_what_starts_anew(tmp_path):
    args = {"save_strategy": "steps", "save_steps": 4, "save_only_model": True}
    made = test_trainer.trainer(tmp_path / "run", **args)
    made.train()
    write_record(tmp_path / "run", {"status": "running"})
    _, checkpoint, notes = claim(config(tmp_path / "run", resume_from_checkpoint="true", **args))
    assert checkpoint.endswith("checkpoint-8") and "the learning rate schedule start anew" in notes[0]
    resumed = test_trainer.trainer(tmp_path / "run", **args)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert len(losses(resumed)) == 8
