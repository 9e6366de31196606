"""Modelfiles for Ollama: prompts as the tokenizer renders them, stop strings, and the weights by format."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from transformers import GenerationConfig

from cctuning.data import Encoder
from cctuning.errors import UserError
from cctuning.serving.engines import Manifest, go_template, modelfile
from cctuning.serving.exporting import export
from tests.data.test_chat import NAMES, tokenizer
from tests.serving.world import make, make_turns

QUESTIONS = [{"role": "user", "content": "one"}]
TALK = [*QUESTIONS, {"role": "assistant", "content": "two"}, {"role": "user", "content": "three"}]
SYSTEM = [{"role": "system", "content": "zero"}, *TALK]


def go(template: str, messages: list[dict[str, str]]) -> str:
    """What Go's text/template makes of the few constructs that `go_template` uses."""
    text = re.sub(r"\{\{- ", "{{ ", re.sub(r"\s+\{\{- ", "{{ ", template))
    parts = re.split(r"\{\{ (.*?) \}\}", text)  # text, action, text, …
    assert not any(part.strip() for part in parts[::2]), "text outside actions would depend on Go's trimming"
    actions, values, out = parts[1::2], {}, []

    def value(word: str, index: int) -> str:
        if word.startswith('"'):
            return json.loads(word)
        return messages[index]["content"] if word == ".Content" else values[word]

    def true(condition: str, index: int) -> bool:
        if condition.startswith("eq .Role "):
            return messages[index]["role"] == json.loads(condition.removeprefix("eq .Role "))
        assert condition == "eq (len (slice $.Messages $i)) 1"
        return index == len(messages) - 1

    def block(place: int, index: int, active: bool) -> int:
        """Run from `place` to the `end` or `else` that closes the block; its place."""
        while place < len(actions):
            action = actions[place]
            if action == "end" or action.startswith("else"):
                return place
            if action.startswith("range "):
                for number in range(len(messages)):
                    end = block(place + 1, number, active)
                place = end
            elif action.startswith("if "):
                done, condition = False, action.removeprefix("if ")
                while True:
                    chosen = active and not done and (condition == "" or true(condition, index))
                    place, done = block(place + 1, index, chosen), done or chosen
                    if actions[place] == "end":
                        break
                    condition = actions[place].removeprefix("else").removeprefix(" if ").strip()
            elif active and (found := re.fullmatch(r"(\$\w+) :?= (.*)", action)):
                values[found[1]] = value(found[2], index)
            elif active:
                out.append(value(action, index))
            place += 1
        return place

    block(0, 0, True)
    return "".join(out)


PROGRAM = """package main
import ("encoding/json"; "os"; "text/template")
type Message struct { Role, Content string }
func main() {
	var given struct { Template string; Messages []*Message }
	if json.NewDecoder(os.Stdin).Decode(&given) != nil { os.Exit(1) }
	made := template.Must(template.New("").Option("missingkey=zero").Parse(given.Template))
	if made.Execute(os.Stdout, map[string]any{"Messages": given.Messages}) != nil { os.Exit(1) }
}
"""


@pytest.fixture(scope="module")
def real_go(tmp_path_factory):
    """Go's own text/template, where there is a Go compiler; else the imitation above."""
    if shutil.which("go") is None:
        return go
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(PROGRAM)
    subprocess.run(["go", "build", "-o", folder / "render", folder / "main.go"], check=True, cwd=folder)

    def run(template: str, messages: list[dict[str, str]]) -> str:
        given = json.dumps({"Template": template, "Messages": messages})
        return subprocess.run([folder / "render"], input=given, check=True, capture_output=True, text=True).stdout

    return run


@pytest.mark.parametrize("name", NAMES)
def test_ollama_renders_what_the_tokenizer_renders(name, real_go):
    made = tokenizer(name)
    encoder = Encoder(made, chat=True)
    template = go_template(encoder)
    assert template is not None
    for messages in (QUESTIONS, TALK, SYSTEM):
        try:
            expected = encoder.render(messages)
        except UserError:  # no system messages
            continue
        if "zero" not in expected and messages is SYSTEM:
            continue
        found = real_go(template, messages)
        assert found == go(template, messages) == expected.removeprefix(made.bos_token or ""), name


def test_the_bos_token_is_left_to_the_engine_where_the_tokenizer_adds_it():
    from tokenizers.processors import TemplateProcessing

    made = tokenizer("llama3")
    made.add_special_tokens({"bos_token": "<|begin_of_text|>"})
    encoder = Encoder(made, chat=True)
    assert encoder.render(QUESTIONS).startswith("<|begin_of_text|>")
    assert go(go_template(encoder), QUESTIONS) == encoder.render(QUESTIONS)
    bos = ("<|begin_of_text|>", made.bos_token_id)
    made.backend_tokenizer.post_processor = TemplateProcessing("<|begin_of_text|> $A", special_tokens=[bos])
    for messages in (QUESTIONS, SYSTEM):
        expected = encoder.render(messages).removeprefix("<|begin_of_text|>")
        assert go(go_template(encoder), messages) == expected


def test_a_template_that_ollama_cannot_render_is_left_out():
    made = tokenizer("qwen2_5")
    made.chat_template = "{{ messages | length }} {{ messages[-1]['content'] }}"
    encoder = Encoder(made, chat=True)
    assert go_template(encoder) is None
    text = modelfile(Manifest("merged", None, "en", chat=True), encoder, GenerationConfig())
    assert "TEMPLATE" not in text and "cannot be written for Ollama" in text


def test_sampling_is_that_of_the_generation_config():
    encoder = Encoder(tokenizer("qwen2_5"), chat=True)
    manifest = Manifest("merged", None, "en", chat=True, stop='say "x" now')
    lines = modelfile(manifest, encoder, GenerationConfig()).splitlines()
    assert "PARAMETER temperature 0" in lines and "PARAMETER repeat_penalty 1.0" in lines
    assert 'PARAMETER stop """say "x" now"""' in lines
    sampled = GenerationConfig(do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)
    lines = modelfile(manifest, encoder, sampled).splitlines()
    wanted = ["temperature 0.7", "top_k 20", "top_p 0.8", "repeat_penalty 1.05"]
    assert [line.removeprefix("PARAMETER ") for line in lines if line.startswith("PARAMETER")][1:] == wanted


def test_each_format_names_its_weights_stops_and_template(tmp_path):
    (tmp_path / "turns").mkdir()
    run = make_turns(tmp_path / "turns", tune="lora")
    for format in ("merged", "lora"):
        export(str(run), format, tmp_path / format)
        text = (tmp_path / format / "Modelfile").read_text()
        assert 'PARAMETER stop "<turn>"' in text and 'PARAMETER stop "<end>"' in text
        assert '{{- if eq .Role "user" }}' in text and str(tmp_path) not in text
        assert "`Modelfile`" in (tmp_path / format / "README.md").read_text()
    assert "\nFROM ./model.gguf\n" in (tmp_path / "merged" / "Modelfile").read_text()
    assert "\nFROM ./base.gguf\nADAPTER ./lora.gguf\n" in (tmp_path / "lora" / "Modelfile").read_text()
    (tmp_path / "plain").mkdir()
    export(str(make(tmp_path / "plain")), "merged", tmp_path / "bare")
    assert '\nTEMPLATE """{{ .Prompt }}"""\n' in (tmp_path / "bare" / "Modelfile").read_text()
