"""The user's mistakes: one clear line each."""

import difflib
import importlib.util
import os
from collections.abc import Iterable


class TrainerError(Exception):
    """A mistake of the user, or an input that cannot be used; its message is one line."""


def require(*modules: str, extra: str = "demo") -> None:
    """Raise TrainerError naming the missing extra unless every module can be imported."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise TrainerError(
            f"this command needs {', '.join(missing)}: pip install 'swav-kernels[{extra}]'"
        )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest known name, or nothing if none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def printable(name: str | os.PathLike[str]) -> str:
    """Return a name from disk as text on one line, whatever bytes it holds."""
    text = os.fsencode(name).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
