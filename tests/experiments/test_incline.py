"""INCLINE's change against a model whose FFN outputs are changed by hand."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.real.rivals.incline import Incline
from experiments.real.scoring import encode, likelihoods
from experiments.real.worlds import BREAK, Item

ITEMS = [
    Item(str(n), text + BREAK, ("sports", "health and more"), 0)
    for n, text in enumerate(["mto unapita karibu", "timu ilishinda mchezo wa mwisho"])
]


def test_the_last_token_of_the_prompt_is_changed_in_all_layers(whole):
    model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32).eval()
    batch = encode(AutoTokenizer.from_pretrained(whole), ITEMS, chat=False)
    before = likelihoods(model, batch)
    model.intervention = change = Incline(model)
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    change.matrices["sw"] = torch.eye(width).expand(layers, -1, -1)
    change.language = "sw"
    change.strengths["sw"] = 0.0
    assert likelihoods(model, batch) == before
    change.strengths["sw"] = -1.0  # h - h: nothing is left of the FFN there
    changed = likelihoods(model, batch)
    change.language = "en"
    assert likelihoods(model, batch) == before

    by_hand = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32).eval()
    ends = torch.tensor([len(prompt) - 1 for prompt, _ in batch])
    for layer in by_hand.model.layers:

        def nothing(module, args, output):
            output[torch.arange(len(ends)), ends] = 0
            return output

        layer.mlp.register_forward_hook(nothing)
    expected = likelihoods(by_hand, batch)
    assert changed != before
    for one, other in zip(changed, expected, strict=True):
        torch.testing.assert_close(torch.tensor(one[1]), torch.tensor(other[1]))


def test_outputs_are_averaged_over_tokens(whole):
    model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32).eval()
    change = Incline(model)
    alone = change.outputs(model, [[5, 6, 7]], None)
    together = change.outputs(model, [[5, 6, 7], [8]], None)
    torch.testing.assert_close(together[:1], alone)
    assert alone.shape == (1, model.config.num_hidden_layers, model.config.hidden_size)
