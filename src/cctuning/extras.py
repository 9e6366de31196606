"""Import packages that an extra of cc-tuning installs, or raise an error that says which extra to install."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from cctuning.errors import UserError

# Extra -> the modules that it brings and the core lacks; pyproject.toml lists the packages.
EXTRAS = {
    "langid": ("lingua",),
    "evaluate": ("lm_eval", "scipy", "lingua"),
    "report": ("matplotlib", "scipy"),
    "pair": ("sklearn", "scipy", "lingua", "openai", "sentencepiece"),
    "encoder": ("sentence_transformers",),
    "serve": ("fastapi", "uvicorn", "lingua"),
    "quantized": ("bitsandbytes",),
    "tensorboard": ("tensorboard",),
}


def available(module: str) -> bool:
    """Whether `module` is installed; it is not imported."""
    return find_spec(module) is not None


def require(module: str, what: str, extra: str | None = None) -> ModuleType:
    """Import `module` and return it.

    Args:
        module: name of the module, for example `lm_eval`.
        what: the command or option that needs it; the error starts with it.
        extra: the extra that the error names; default: the first in `EXTRAS` that brings the module.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise missing(error, what, extra) or error from error


def missing(error: ModuleNotFoundError, what: str, extra: str | None = None) -> UserError | None:
    """The error for the user where a module of an extra could not be imported; None where no extra brings it."""
    module = (error.name or "").partition(".")[0]
    bringing = [name for name, modules in EXTRAS.items() if module in modules]
    if not bringing:
        return None
    extra = extra if extra in bringing else bringing[0]
    return UserError(f"{what} needs {module}, which is not installed: pip install 'cc-tuning[{extra}]'.")
