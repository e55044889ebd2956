"""The errors that reach a user: what is wrong, and what to do about it.

Every error here ends the command line with one message and exit code 2. Anything else that escapes is a bug
of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LISTED = 30  # names in a message; more would bury it


class VitreousError(Exception):
    """Something the user can mend.

    Args:
        problem: what is wrong, in one sentence, naming the file or the setting.
        fix: what to do about it, in one sentence.
    """

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(problem, fix)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.problem} {self.fix}".strip()


class SceneError(VitreousError):
    """A scene or label file that cannot be read, or does not say what it must."""


class SplitError(VitreousError):
    """Labels that cannot be divided into training, validation and test pixels as asked."""


class ConfigError(VitreousError):
    """A setting that does not exist, or has a value that makes no sense."""


class ModelError(VitreousError):
    """A model that does not exist, or cannot serve the data it was given."""


class CheckpointError(VitreousError):
    """Weights that are not what they should be; nothing has been loaded."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return ``Did you mean 'x'?`` for the nearest of ``options``, or a list of what there is."""
    known = sorted(options)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return "Did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return "Known: " + ", ".join(known[:LISTED]) + more + "."
