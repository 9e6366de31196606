"""The command line: one module per verb, imported when the verb is called, so that `--help` is fast."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import warnings
from pathlib import Path

ERRORS = "CC_TUNING_ERRORS"  # environment variable: file that a launched process writes its error to
VERBS = {
    "pair": "find or make the English parallel text of rows, with checks and a card",
    "diagnose": "measure before training how far languages are aligned",
    "align": "align a model's languages to English on parallel text alone (a language pack)",
    "train": "fine-tune a model on rows and parallel text, from a recipe and flags",
    "recipes": "list the recipes in the package, for --config NAME",
    "export": "turn a run into a merged checkpoint or a PEFT LoRA",
    "generate": "answer prompts with a run, an export or any other model",
    "label": "answer the English side of parallel text: rows in other languages for training",
    "evaluate": "score a model per language on public benchmarks or rows of your own",
    "compare": "test whether scored models differ, language by language",
    "report": "write an HTML page on training, connection and results of runs",
    "demo": "run the whole method on a small made-up world, in minutes",
}
# What the user's machine, and not this program, is responsible for.
MACHINE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ENOTDIR)


def main(argv: list[str] | None = None) -> int:
    """Run `cctuning VERB …`; returns the exit status: 2 for a user's error, with one line on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print("usage: cctuning VERB [options]\n")
        for verb, summary in VERBS.items():
            print(f"  {verb:9} {summary}")
        print("\ncctuning VERB --help lists the options of a verb; cctuning --version prints the version.")
        return 0 if argv else 2
    if argv[0] == "--version":
        from cctuning import __version__

        print(f"cc-tuning {__version__}")
        return 0
    from cctuning.errors import UserError, nearest
    from cctuning.extras import missing
    from cctuning.progress import as_lines

    try:
        if argv[0] not in VERBS:
            hint = nearest(argv[0], VERBS, f" Verbs: {', '.join(VERBS)}.")
            raise UserError(f"unknown verb {argv[0]!r}.{hint}")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or forked data workers warn for each row
        if not sys.stderr.isatty() and argv[0] != "demo":
            as_lines()
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a warning on each import
        logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # a warning on each retry
        warnings.filterwarnings("ignore", category=FutureWarning)  # between TRL and transformers
        importlib.import_module(f"cctuning.cli.{argv[0]}").main(argv[1:])
    except ModuleNotFoundError as error:
        known = missing(error, f"cctuning {argv[0]}", argv[0])
        if known is None:
            raise
        return _fail(known)
    except UserError as error:
        return _fail(error)
    except BrokenPipeError:  # `cctuning generate … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in MACHINE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror}; free some space, change the permissions, or use another place.")
    except KeyboardInterrupt:
        print("\ncctuning: stopped", file=sys.stderr)
        return 130
    return 0


def _fail(error: Exception | str) -> int:
    """Print a user's error and return the exit status."""
    print(f"cctuning: error: {error}", file=sys.stderr)
    if ERRORS in os.environ:  # for the parent of a process that `cctuning train --accelerate_config` launched
        Path(os.environ[ERRORS]).write_text(str(error), encoding="utf-8")
    return 2
