"""The command line: a thin file per verb, imported only when it is called, so that `--help` answers at once."""

from __future__ import annotations

import importlib
import os
import sys

VERBS = {
    "train": "fine-tune a model on paired rows: a recipe, and any option as a flag",
    "export": "turn a run into a plain checkpoint or a PEFT LoRA",
    "generate": "answer prompts with a run, a fold, or any model",
    "demo": "the whole method on a small world, from nothing to a table, in minutes",
}


def main(argv: list[str] | None = None) -> int:
    """Run `cctuning VERB …`; returns the exit status (2 for bad input, with one line on stderr)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print("usage: cctuning VERB [options]\n")
        for verb, does in VERBS.items():
            print(f"  {verb:9} {does}")
        print("\ncctuning VERB --help lists a verb's options; cctuning --version prints the version.")
        return 0 if argv else 2
    if argv[0] == "--version":
        from cctuning import __version__

        print(f"cc-tuning {__version__}")
        return 0
    from cctuning.errors import UserError

    try:
        if argv[0] not in VERBS:
            import difflib

            near = difflib.get_close_matches(argv[0], VERBS, 1)
            raise UserError(
                f"{argv[0]!r} is not a verb."
                + (f" Did you mean {near[0]}?" if near else f" Known: {', '.join(VERBS)}.")
            )
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked data workers would warn at every row
        importlib.import_module(f"cctuning.cli.{argv[0]}").main(argv[1:])
    except UserError as error:
        print(f"cctuning: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ncctuning: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `cctuning generate … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0
