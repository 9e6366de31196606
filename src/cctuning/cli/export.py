"""`cctuning export RUN --format {merged,lora} --output DIR`."""

from __future__ import annotations

from pathlib import Path

from cctuning.cli.options import Plain, chosen


def main(argv: list[str]) -> None:
    """Export a run and print what was written and how to load it."""
    parser = Plain("cctuning export", description="Export a run as a checkpoint or a PEFT LoRA.")
    parser.add_argument("run", metavar="RUN", help="a run, one of its checkpoint-N directories, or RUN/model")
    parser.add_argument(
        "--format",
        choices=("merged", "lora", "fold"),
        required=True,
        metavar="{merged,lora}",
        help="merged: plain checkpoint; lora: PEFT adapter",
    )
    parser.add_argument("--output", required=True, help="directory to write; must not exist")
    parser.add_argument(
        "--dtype", default="auto", help="dtype of a merged checkpoint; auto: the base's for a LoRA, else the run's"
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="run code of the base model")
    args = parser.parse_args(argv)
    if args.format == "fold":
        print("note: --format fold is now --format merged; the old name will be removed in the next release")
        args.format = "merged"
    from cctuning.serving.exporting import export

    done = export(args.run, args.format, Path(args.output), **chosen(args, "dtype trust_remote_code"))
    print(f"written: {args.output}\nchecked: loaded again, {done.checked}")
    if args.format == "merged":
        print("load it: AutoModelForCausalLM.from_pretrained(DIR), or a server that loads Hugging Face checkpoints")
    else:
        base = done.manifest.base
        print(f"load it: PeftModel.from_pretrained(base, DIR) with base = {base!r}, or a server that loads PEFT LoRAs")
        print(done.vllm)
    print(f"Ollama, llama.cpp: see {args.output}/Modelfile")
    if not done.manifest.chat:
        print("prompts: plain text, as in training, without a chat template (on a server: /v1/completions)")
    if done.manifest.stop:
        print(f"answers: end at the text {done.manifest.stop!r}: send it as stop with each request")
    for note in done.notes:
        print(f"note: {note}")
