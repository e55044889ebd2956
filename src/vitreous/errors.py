"""The errors that reach a user: what is wrong, and what to do about it.

Every error here ends the command line with one message and exit code 2. Anything else that escapes is a bug
of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LISTED = 30  # names in a message; more would bury it
FAULTS = 200  # lines of a list of faults
LONGEST = 2000  # characters of a sentence: whatever went into it, it stays one that can be read


class VitreousError(Exception):
    """Something the user can mend.

    Args:
        problem: what is wrong, in one sentence, naming the file or the setting.
        fix: what to do about it, in one sentence.

    Both are cut at ``LONGEST`` characters.
    """

    def __init__(self, problem: str, fix: str = "") -> None:
        self.problem, self.fix = shortened(problem), shortened(fix)
        super().__init__(self.problem, self.fix)

    def __str__(self) -> str:
        return f"{self.problem} {self.fix}".strip()


class SceneError(VitreousError):
    """A scene or label file that cannot be read, or does not say what it must."""


class CollectionError(VitreousError):
    """Scenes of a collection that cannot be used together: all that does not fit, one line each.

    Args:
        problem: what is wrong, in one sentence, naming the collection.
        faults: what does not fit as ``(where, what)``; the longest list is cut after ``FAULTS`` lines.
        fix: what to do about it, in one sentence.
    """

    def __init__(self, problem: str, faults: Iterable[tuple[str, str]], fix: str = "") -> None:
        super().__init__(problem, fix)
        self.faults = list(faults)
        shown = [(shortened(where, 100), shortened(what, 300)) for where, what in self.faults]
        width = max((len(where) for where, _ in shown[:FAULTS]), default=0)
        lines = [f"  {where:<{width}}  {what}" for where, what in shown[:FAULTS]]
        if len(shown) > FAULTS:
            lines.append(f"  ... and {len(shown) - FAULTS:,} more")
        self.problem = "\n".join([self.problem, *lines])
        self.args = (self.problem, self.fix)

    def __str__(self) -> str:
        return f"{self.problem}\n{self.fix}".strip()


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
    known = sorted(set(options))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return "Did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    return f"Known: {listed(known)}."


def listed(names: Iterable[object], most: int = LISTED) -> str:
    """Return ``a, b, c``: each name once, in the order given, and beyond ``most`` of them only how many more."""
    words = list(dict.fromkeys(str(name) for name in names))
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def shortened(text: str, most: int = LONGEST) -> str:
    """Return ``text``, cut after ``most`` characters, with how many were left out."""
    left = len(text) - most
    return text if left <= 0 else f"{text[:most]} ... ({left:,} more characters)"
