"""The command line: a thin file per verb, imported only when it is called, so that `--help` answers at once."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import warnings
from pathlib import Path

ERRORS = "CC_TUNING_ERRORS"  # environment: a file that a launched process writes its error line to
VERBS = {
    "pair": "find or make the English parallel of every row, checked and documented",
    "diagnose": "measure, before training, what a connection could carry over",
    "align": "make a language pack: align languages to English by parallel text alone",
    "train": "fine-tune a model on rows and parallel text: a recipe, and any option as a flag",
    "recipes": "the recipes that come with the package: --config NAME",
    "export": "turn a run into a plain checkpoint or a PEFT LoRA",
    "generate": "answer prompts with a run, a fold, or any model",
    "evaluate": "score a model on public benchmarks, per language, from the hub or from files",
    "compare": "say whether scored models differ, language by language",
    "report": "one HTML page on what runs learned, what it cost and what it gave",
    "demo": "the whole method on a small world, from nothing to a table, in minutes",
}

OF_THE_MACHINE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
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
    from cctuning.errors import UserError, nearest
    from cctuning.extras import missing
    from cctuning.progress import as_lines

    try:
        if argv[0] not in VERBS:
            hint = nearest(argv[0], VERBS, f" Known: {', '.join(VERBS)}.")
            raise UserError(f"{argv[0]!r} is not a verb.{hint}")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked data workers would warn at every row
        if not sys.stderr.isatty() and argv[0] != "demo":
            as_lines()  # a log file has no use for progress bars
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of a kernel it would like, at each import
        warnings.filterwarnings("ignore", category=FutureWarning)  # between TRL and transformers: nothing to be done
        importlib.import_module(f"cctuning.cli.{argv[0]}").main(argv[1:])
    except ModuleNotFoundError as error:
        told = missing(error, f"cctuning {argv[0]}", argv[0])
        if told is None:
            raise
        return _refuse(told)
    except UserError as error:
        return _refuse(error)
    except BrokenPipeError:  # `cctuning generate … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a directory one may not write to, a full disk: no defect of ours
        if error.errno not in OF_THE_MACHINE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"cctuning: error: {where}{error.strerror}; make room or give leave there, or name another place.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("\ncctuning: stopped", file=sys.stderr)
        return 130
    return 0


def _refuse(error: Exception) -> int:
    """Print a user's error and return the exit status."""
    print(f"cctuning: error: {error}", file=sys.stderr)
    if ERRORS in os.environ:  # a process that `cctuning train --accelerate_config` launched
        Path(os.environ[ERRORS]).write_text(str(error), encoding="utf-8")
    return 2
