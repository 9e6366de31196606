"""What PEFT allows, from the first step to the export: right, or refused before training; never silently wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.config import KasaConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from cctuning import CCConfig, ConnectionConfig, UserError
from cctuning.cli.options import parse
from cctuning.model import lora, merge
from cctuning.model.loading import load
from cctuning.serving.exporting import export
from cctuning.training import run as running
from cctuning.training.options import RunOptions
from tests.cli.world import done, records, refused, run_json, write_jsonl, write_model, write_recipe
from tests.serving.world import make
from tests.training.toys import tokenizer

SMALL = ["q_proj", "down_proj"]
ENDS = ["model.embed_tokens.weight", "lm_head.weight"]
IDS = torch.arange(6, 18)[None]


def train(folder: Path, config, tied: bool = False, **options):
    """A run whose adapter is `config`: the trainer and the run directory."""
    base = folder / "base"
    if not base.exists():
        write_model(base, tie_word_embeddings=tied)
    data = write_jsonl(folder / "rows.jsonl", records())
    given = {"tune": "lora", "max_steps": 2, "learning_rate": 2e-2, **options}
    recipe = write_recipe(folder / "r.yaml", model=str(base), data=str(data), **given)
    parts = parse("x", "", (RunOptions, ConnectionConfig, CCConfig), ["--config", str(recipe)])
    parts[2].output_dir = str(folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunOptions, "lora", lambda *_: config)
        return running.train(*parts), folder / "run"


def made(**options) -> LoraConfig:
    return LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": SMALL, **options})


RIGHT = {  # name -> config, whether it can be a LoRA of the untouched base too
    "rslora, ranks by module": (made(use_rslora=True, rank_pattern={"q_proj": 7}, alpha_pattern={"q_proj": 3}), True),
    "orthogonal": (made(init_lora_weights="orthogonal"), True),
    "random start": (made(init_lora_weights=False), True),
    "one layer by regex": (made(target_modules=r".*layers\.1\..*(q|down)_proj"), True),
    "dora with rslora": (made(use_dora=True, use_rslora=True), False),
    "mica": (made(init_lora_weights="mica"), False),
    "embedding": (made(target_modules=["embed_tokens", "q_proj"]), False),
    "embedding, dora, biases, a norm": (
        made(target_modules=["embed_tokens", "q_proj"], use_dora=True, bias="all", modules_to_save=["norm"]),
        False,
    ),
    "both ends trained": (made(target_modules="all-linear", modules_to_save=["embed_tokens", "lm_head"]), False),
    "tied ends trained": (made(modules_to_save=["embed_tokens"], ensure_weight_tying=True), False),
    "trained tokens": (made(trainable_token_indices=[3, 7]), False),
    "parameters": (made(target_modules=[], target_parameters=["mlp.down_proj.weight"]), False),
    "IA3": (
        peft.IA3Config(task_type="CAUSAL_LM", target_modules=SMALL, feedforward_modules=["down_proj"]),
        False,
    ),
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("case", RIGHT)
def test_an_adapter_is_exported_as_it_was_trained(case, tied, tmp_path):
    config, as_lora = RIGHT[case]
    trainer, run = train(tmp_path, config, tied)
    trainer.model.eval(), trainer.connected.eval()
    trained = trainer.connected(IDS).logits.detach()
    torch.testing.assert_close(load(str(run)).connected(IDS).logits.detach(), trained, rtol=1e-4, atol=1e-4)
    can = run_json(run)["exports"]
    assert can["merged"] is None and (can["lora"] is None) is as_lora  # said before the first step
    assert export(str(run), "merged", tmp_path / "fold").checked.error < 1e-5
    if as_lora:
        assert export(str(run), "lora", tmp_path / "lora").checked.error < 1e-5
    else:
        with pytest.raises(UserError, match="merge instead"):
            export(str(run), "lora", tmp_path / "lora")
        assert any("cannot be exported as a LoRA, only merged" in note for note in run_json(run)["notes"])


@pytest.mark.parametrize("case", ["dora with rslora", "trained tokens", "both ends trained"])
def test_without_a_connection_to_join_an_adapter_is_exported_as_it_is(case, tmp_path):
    """What could not be joined with a transform: of `align` and `none` nothing has to be."""
    for connection, more in (("none", {}), ("align", {"layers": [0]})):
        folder = tmp_path / connection
        folder.mkdir()
        _, run = train(folder, RIGHT[case][0], connection=connection, **more)
        assert run_json(run)["exports"] == {"merged": None, "lora": None}
        assert export(str(run), "lora", folder / "lora").checked.error < 1e-5


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"init_lora_weights": "pissa"}, "'pissa'"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "'olora'"),
        ({"init_lora_weights": "lora_ga"}, "'lora_ga'"),
        ({"kasa_config": KasaConfig()}, "'kasa'"),
    ],
)
def test_a_start_that_rewrites_the_base_is_refused_before_training(options, start, tmp_path):
    with pytest.raises(UserError, match=f"init_lora_weights: {start} rewrites the base's weights"):
        train(tmp_path, made(**options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "fold", "as_lora"),
    [
        (made(lora_bias=True), "lora_bias on a layer that has no bias", None),
        (made(alora_invocation_tokens=[7]), "acts from its invocation tokens on", "ALora"),
        (peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "PREFIX_TUNING", "PREFIX_TUNING"),
        (made(layer_replication=[[0, 2], [1, 2]]), "tied to another module's", "replicates layers"),
    ],
    ids=["lora_bias", "aLoRA", "prefix", "replication"],
)
def test_what_cannot_be_exported_is_said_before_the_first_step(config, fold, as_lora, tmp_path, capsys):
    _, run = train(tmp_path, config)
    assert fold in next(line for line in capsys.readouterr().out.splitlines() if "note: this run cannot be" in line)
    for format, reason in (("merged", fold), ("lora", as_lora)):
        said = run_json(run)["exports"][format]
        if reason is None:
            assert said is None and export(str(run), format, tmp_path / format).checked.error < 1e-5
        else:
            assert reason in said
            with pytest.raises(UserError, match=reason):
                export(str(run), format, tmp_path / format)
            assert not (tmp_path / format).exists()


# -- a vocabulary that grew -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def more_tokens(tmp_path_factory) -> Path:
    """A tokenizer with a chat template and nine tokens more than the base's."""
    folder = tmp_path_factory.mktemp("tokens") / "more"
    grown = tokenizer(chat=True)
    grown.add_special_tokens({"additional_special_tokens": [f"<turn{i}>" for i in range(9)]})
    grown.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("connection", ["gated", "none"])
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_a_resized_vocabulary_folds(tune, connection, more_tokens, tmp_path):
    config = made() if tune == "lora" else None
    trainer, run = train(tmp_path, config, tune=tune, connection=connection, chat_template_path=str(more_tokens))
    trainer.model.eval(), trainer.connected.eval()
    ids = torch.tensor([[6, 7, 70, 66, 8]])
    trained = trainer.connected(ids).logits.detach()
    assert trained.shape[-1] > 64
    loaded = load(str(run))
    found = (loaded.connected or loaded.model)(ids).logits.detach()
    torch.testing.assert_close(found, trained, rtol=1e-4, atol=1e-4)
    assert export(str(run), "merged", tmp_path / "fold").checked.error < 1e-5
    with pytest.raises(UserError, match="merge instead"):
        export(str(run), "lora", tmp_path / "lora")
    assert run_json(run)["exports"]["lora"]


def test_a_lora_of_a_model_that_was_resized_is_refused(more_tokens, tmp_path):
    _, run = train(tmp_path, None, tune="connection", chat_template_path=str(more_tokens))
    assert "resized from 64 to" in run_json(run)["exports"]["lora"]
    with pytest.raises(UserError, match="the vocabulary was resized from 64 to"):
        export(str(run), "lora", tmp_path / "lora")


def test_tied_ends_and_added_tokens_are_refused_before_training(more_tokens, tmp_path):
    with pytest.raises(UserError, match="input and output embedding are one weight"):
        train(tmp_path, made(), tied=True, chat_template_path=str(more_tokens))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("tune", ["full", "lora", "tokens"])
def test_new_tokens_of_a_language_train_and_export(tune, tied, tmp_path):
    """The code of docs/guides/train.md, with the first words of two rows as new tokens."""
    page = (Path(__file__).parents[2] / "docs" / "guides" / "train.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "add_tokens" in block)
    base, grown = tmp_path / "small", tmp_path / "base"
    write_model(base, tie_word_embeddings=tied)
    new = [" ".join(row["prompt"].split()[:2]) for row in records()[:2]]
    code = re.sub(r"new = \[.*?\]", f"new = {new!r}", code)
    made_of = {"Qwen/Qwen2.5-1.5B-Instruct": str(base), "models/qwen-sw": str(grown)}
    for name, path in made_of.items():
        assert name in code
        code = code.replace(name, path)
    scope: dict[str, Any] = {}
    exec(code, scope)
    words = AutoTokenizer.from_pretrained(grown)
    ids = words.convert_tokens_to_ids(new)
    before = {end: AutoModelForCausalLM.from_pretrained(grown).get_parameter(end) for end in ENDS[: 2 - tied]}
    for token, place in zip(new, ids, strict=True):
        pieces = AutoTokenizer.from_pretrained(base)(token, add_special_tokens=False)["input_ids"]
        assert len(pieces) == 2 and words(token, add_special_tokens=False)["input_ids"] == [place]
        for weight in before.values():
            torch.testing.assert_close(weight[place], weight[pieces].mean(dim=0))
    options = {"full": None, "lora": made(modules_to_save=["embed_tokens"] if tied else ["embed_tokens", "lm_head"])}
    options["lora"].ensure_weight_tying = tied
    options["tokens"] = made(trainable_token_indices=ids)
    given = {"tune": "full" if tune == "full" else "lora", "per_device_train_batch_size": 12}  # all rows in two steps
    _, run = train(tmp_path, options[tune], **given)
    assert export(str(run), "merged", tmp_path / "out").checked.error < 1e-5
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not torch.equal(after.get_parameter(ENDS[0])[ids], before[ENDS[0]][ids])  # the new rows were trained
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(new[0], add_special_tokens=False)["input_ids"] == ids[:1]


# -- the check itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["merged", "lora"])
def test_an_export_that_is_wrong_is_an_error_and_leaves_nothing(format, tmp_path, monkeypatch, capsys):
    run = make(tmp_path, tune="lora")
    fold, factors = merge.merge_projection, lora.lora_from_connection

    def wrong(projection, transform, old):
        right = factors(projection, transform, old)
        return right._replace(b=right.b * 1.02)

    monkeypatch.setattr(merge, "merge_projection", lambda part, delta: fold(part, delta * 1.02))
    monkeypatch.setattr(lora, "lora_from_connection", wrong)
    before = sorted(path.name for path in tmp_path.iterdir())
    said = refused(capsys, "export", run, "--format", format, "--output", tmp_path / "out")
    assert "the export does not answer as the run does" in said and "It was deleted" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    monkeypatch.undo()
    done("export", run, "--format", format, "--output", tmp_path / "out")
    assert "checked: loaded again, logits within " in capsys.readouterr().out
