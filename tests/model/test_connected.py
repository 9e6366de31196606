"""`ConnectedModel` in the hands of a user: loops of one's own, options of generate, PEFT's adapters, torch.compile."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import DynamicCache, GenerationConfig, LlamaForCausalLM

from cctuning import ConnectedModel, ConnectionConfig
from cctuning.errors import UserError
from cctuning.model.passes import GenerationPlanner
from tests.conftest import shake, tiny_llama

GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
CURRENT = {"reference_weights": "current"}


def attach(model=None, scale: float = 0.3, **options) -> ConnectedModel:
    connected = ConnectedModel.attach(
        tiny_llama() if model is None else model, ConnectionConfig(**{"connection": "gated", **options})
    ).eval()
    shake(connected, scale)
    return connected


def fine_tune(connected: ConnectedModel, batch: dict, steps: int, rate: float = 3e-3) -> None:
    optimizer = torch.optim.Adam((p for p in connected.parameters() if p.requires_grad), lr=rate)
    connected.train()
    connected.total_steps = steps
    for connected.step in range(steps):
        connected(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    connected.eval()


def lora(model, **options) -> PeftModel:
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, **options))


# -- training ---------------------------------------------------------------------------------------------------------


def test_the_schedule_must_be_told_in_a_loop_of_ones_own(batch):
    """Unset it would stay at its first value, which is the fused pass alone."""
    connected = attach(**CURRENT).train()
    with pytest.raises(UserError, match="set total_steps once, and step before each optimiser step"):
        connected(**batch)
    connected.total_steps = 3
    found = []
    for connected.step in range(3):
        found.append(connected.fused_probability)
        connected(**batch)
    assert found == [1.0, 0.5, 0.0]
    attach(**CURRENT, fused_probability_end=1.0).train()(**batch)  # nothing to schedule


@pytest.mark.parametrize("options", [{}, {"connection": "adaptive"}])
def test_loaded_as_the_model_inside_is(options, batch, tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    made = attach(**options)
    made.save_pretrained(tmp_path / "connection", base_trained=False)
    again = ConnectedModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path), tmp_path / "connection")
    assert not again.training and not again.model.training
    inputs = {"input_ids": batch["input_ids"][:2, :6]}
    assert torch.equal(again(**inputs).logits, made(**inputs).logits)
    assert ConnectedModel.attach(tiny_llama().train(), ConnectionConfig(**{"connection": "gated", **options})).training


@pytest.mark.parametrize("how", ["whole", "inside"])
def test_compiled_the_gradient_is_the_same(how, batch):
    """The alignment's rides on the layers' outputs: traced, it would be compiled to nothing."""
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        connected = attach(tiny_llama(layers=1)).train()
        run = connected
        if compiled and how == "whole":
            run = torch.compile(connected, backend="aot_eager")
        elif compiled:
            connected.model.compile(backend="aot_eager")
        run(**batch, fused_rows=torch.tensor([True, False, False, False])).loss.backward()
        found.append({name: p.grad for name, p in connected.model.named_parameters() if p.grad is not None})
    plain, traced = found
    assert plain.keys() == traced.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(traced[name], gradient, msg=name)


def test_the_accuracy_of_an_evaluation_is_the_students(batch):
    connected = attach(**CURRENT, paths="fused", align_weight=0.0, decision_bias=2.0)
    fine_tune(connected, batch, 40)
    with torch.no_grad():
        found = connected(**batch)
    wanted = batch["labels"][:, 1:]
    right = (found.logits[:, :-1].argmax(dim=-1) == wanted) & (wanted != -100)
    assert found.fused_loss < found.student_loss
    assert (int(found.correct), int(found.scored)) == (int(right.sum()), int((wanted != -100).sum()))


# -- generate ---------------------------------------------------------------------------------------------------------


def test_disabled_within_disabled(batch):
    connected = attach()
    with connected.disable_adapter():
        bare = connected(input_ids=batch["input_ids"]).logits
        with connected.disable_adapter():
            pass
        assert torch.equal(connected(input_ids=batch["input_ids"]).logits, bare)
    assert not torch.equal(connected(input_ids=batch["input_ids"]).logits, bare)


@pytest.mark.parametrize(
    "options", [{"scope": "prompt_end"}, {"scope": "response"}, {"connection": "adaptive"}], ids=str
)
def test_a_cache_is_kept_whatever_the_models_options_say(options, batch):
    connected = attach(**options, scale=1.0)
    if "connection" in options:
        connected.adaptive.set_matrix(torch.randn(32, 32))
        torch.nn.init.normal_(connected.adaptive.selector.weight)
    ids = batch["input_ids"][:2, :6]
    wanted = connected.generate(ids, **GREEDY)
    given = GenerationConfig(use_cache=False, **GREEDY)
    assert torch.equal(connected.generate(ids, generation_config=given), wanted)
    with pytest.raises(UserError, match="leave the cache on"):
        connected.generate(ids, use_cache=False, **GREEDY)


@pytest.mark.parametrize("scope", ["prompt_end", "response", "all"])
@pytest.mark.parametrize("live", [False, True])
def test_with_an_assistant_the_answers_are_the_same(scope, live, batch):
    """An assistant's first proposals come with the prompt, in one forward."""
    connected = attach(scope=scope, fusion_scope=scope, scale=1.5)
    parts = ("reference_input_ids", "reference_attention_mask")
    given = {name: batch[name][:1] for name in parts} if live else {}
    for seed in range(6):
        ids = torch.randint(3, 64, (1, 9), generator=torch.Generator().manual_seed(seed))
        alone = connected.generate(ids, **given, **GREEDY)
        helped = connected.generate(ids, assistant_model=tiny_llama(), **given, **GREEDY)
        assert torch.equal(alone, helped), seed


def test_an_aligned_model_runs_no_reference_at_inference(batch, monkeypatch):
    made = ConnectedModel.attach(tiny_llama(), ConnectionConfig(layers=[0, 1])).eval()
    del batch["labels"]
    monkeypatch.setattr(made, "reference_pass", lambda batch: pytest.fail("a reference runs"))
    assert torch.equal(made(**batch).logits, tiny_llama()(batch["input_ids"], batch["attention_mask"]).logits)
    ids = batch.pop("input_ids")[:, :4]
    given = {name: value for name, value in batch.items() if name != "attention_mask"}
    found = made.generate(ids, **given, max_new_tokens=3, do_sample=False, use_cache=False, pad_token_id=0)
    assert torch.equal(found, tiny_llama().generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0))


def test_what_comes_with_the_prompt_is_answer():
    mask = torch.ones(2, 4, dtype=torch.long)
    for scope, acted in (("response", [3, 4, 5, 9, 10, 11]), ("prompt_end", [3, 9])):
        plan = GenerationPlanner(ConnectionConfig("gated", scope=scope), mask, torch.tensor([-1, -1]), None)(2, 6)
        assert plan.transform_index.tolist() == acted


@pytest.mark.parametrize("scope", ["prompt_end", "response"])
def test_a_prompt_that_is_not_run_at_once_is_refused(scope, batch):
    connected = attach(scope=scope)
    ids = batch["input_ids"][:1, :8]
    with pytest.raises(UserError, match="the prompt is not run at once"):
        connected.generate(ids, prefill_chunk_size=3, **GREEDY)
    cache = DynamicCache()
    with torch.no_grad(), connected.disable_adapter():
        connected.model(ids[:, :5], past_key_values=cache, use_cache=True)
    with pytest.raises(UserError, match="the prompt is not run at once"):
        connected.generate(ids, past_key_values=cache, **GREEDY)


# -- export -----------------------------------------------------------------------------------------------------------


def test_a_base_that_a_loop_of_ones_own_trained_is_no_lora(batch, tmp_path):
    connected = attach(tiny_llama().requires_grad_(False), **CURRENT)
    fine_tune(connected, batch, 2)
    connected.export_lora(tmp_path / "before")
    connected = attach(**CURRENT)
    fine_tune(connected, batch, 2)
    with pytest.raises(UserError, match="the base's own weights are trained"):
        connected.export_lora(tmp_path / "after")
    tuned = attach(lora(tiny_llama(), target_modules="all-linear"), **CURRENT)
    fine_tune(tuned, batch, 2)
    tuned.export_lora(tmp_path / "lora")


@pytest.mark.parametrize("targets", [["lm_head", "down_proj"], ["embed_tokens", "down_proj"]])
def test_a_lora_on_one_end_of_tied_embeddings_folds(targets, batch):
    connected = attach(lora(tiny_llama(tie_word_embeddings=True), target_modules=targets))
    ids = batch["input_ids"][:2, :6]
    wanted = connected(input_ids=ids).logits
    torch.testing.assert_close(connected.merge_and_unload().eval()(ids).logits, wanted, atol=1e-4, rtol=1e-4)


def test_a_merge_that_is_refused_leaves_the_model_whole(batch):
    connected = attach(lora(tiny_llama(), target_modules=["down_proj"], lora_bias=True))
    ids = batch["input_ids"][:2, :6]
    before = connected(input_ids=ids).logits
    with pytest.raises(UserError, match="lora_bias on a layer that has no bias"):
        connected.merge_and_unload()
    assert len(connected.connections) == 3 and torch.equal(connected(input_ids=ids).logits, before)


def test_virtual_tokens_are_refused():
    tuned = get_peft_model(tiny_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(UserError, match="PROMPT_TUNING: its virtual tokens"):
        ConnectedModel.attach(tuned)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_base_is_known_in_every_dtype(dtype, tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    attach().save_pretrained(tmp_path / "connection", base_trained=False)
    ConnectedModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path, dtype=dtype), tmp_path / "connection")
    other = LlamaForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    # float16 is told by a few values as it rounds them; elsewhere a little tuning tells
    other.get_input_embeddings().weight.data.mul_(1.001 if dtype == torch.float32 else 1.01)
    with pytest.raises(UserError, match="another model of the same shape"):
        ConnectedModel.from_pretrained(other, tmp_path / "connection")


@pytest.mark.parametrize("given", ["base", "peft"])
def test_a_lora_beside_the_connection_is_loaded_with_it(given, batch, tmp_path):
    made = attach(lora(tiny_llama(), target_modules=["q_proj", "down_proj"]))
    made.model.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path, base_trained=False)
    base = tiny_llama() if given == "base" else PeftModel.from_pretrained(tiny_llama(), tmp_path)
    again = ConnectedModel.from_pretrained(base, tmp_path).eval()
    assert isinstance(again.model, PeftModel) and len(again.model.peft_config) == 1
    ids = batch["input_ids"][:2, :6]
    assert torch.equal(again(ids).logits, made(ids).logits)


def test_a_damaged_lora_beside_the_connection_is_an_error(tmp_path):
    made = attach(lora(tiny_llama(), target_modules=["q_proj"]))
    made.model.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path, base_trained=False)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"1234")
    with pytest.raises(UserError, match="its LoRA cannot be loaded"):
        ConnectedModel.from_pretrained(tiny_llama(), tmp_path)


@pytest.mark.parametrize("connection", ["align", "gated"])
def test_units_that_were_never_measured_are_an_error(connection, batch):
    """In a loop of one's own; in silence the error would be another one."""
    config = ConnectionConfig(connection, align_loss="standardized", layers=[0, 1], reference_weights="current")
    connected = ConnectedModel.attach(tiny_llama(), config).train()
    connected.total_steps = 2
    with pytest.raises(UserError, match=r"align_loss: standardized.*keep_recorded"):
        connected(**batch)
