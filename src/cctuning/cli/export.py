"""`cctuning export RUN --format {fold,lora} --output DIR`."""

from __future__ import annotations

from pathlib import Path

from cctuning.cli.options import Plain


def main(argv: list[str]) -> None:
    """Export a run, say what was written and what loads it."""
    parser = Plain("cctuning export", description="Turn a run into a plain checkpoint or a PEFT LoRA.")
    parser.add_argument("run", metavar="RUN", help="a run directory, one of its checkpoint-… folders, or RUN/model")
    parser.add_argument(
        "--format", choices=("fold", "lora"), required=True, help="fold: plain checkpoint; lora: adapter"
    )
    parser.add_argument("--output", required=True, help="directory to write; must not exist")
    parser.add_argument("--dtype", default="auto", help="dtype of a folded checkpoint: auto (as trained), bfloat16, …")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the base model's own code")
    args = parser.parse_args(argv)
    from cctuning.serving.exporting import export

    base = export(args.run, args.format, Path(args.output), dtype=args.dtype, trust_remote_code=args.trust_remote_code)
    print(f"written: {args.output}")
    if args.format == "fold":
        print("load it: AutoModelForCausalLM.from_pretrained(DIR), or any server that loads a Hugging Face checkpoint")
    else:
        print(f"load it: PeftModel.from_pretrained(base, DIR) with base = {base!r}, or a server that takes PEFT LoRAs")
