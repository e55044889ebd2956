"""What constructor arguments may be: types for signatures, and the check of given values against them.

A system says in its signature what it takes (``dim: Size``, ``drop_path: Share``), and :func:`check_values` holds given
values to it before anything is built. What depends on several arguments at once stays with the system.
"""

from __future__ import annotations

import operator
import reprlib
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from vitreous.errors import ModelError

MOST_BANDS = 65536
MOST_CLASSES = 2**17
MOST_IMAGE_SIZE = 4096
LARGEST = 2**16  # width, side or number of heads
DEEPEST = 256  # blocks in a row
MOST_STAGES = 16

ImageSize: TypeAlias = int | tuple[int, int]  # a side in pixels, or height and width
Size: TypeAlias = Annotated[int, Field(ge=1, le=LARGEST)]
Count: TypeAlias = Annotated[int, Field(ge=0, le=LARGEST)]
Depth: TypeAlias = Annotated[int, Field(ge=1, le=DEEPEST)]
Positive: TypeAlias = Annotated[float, Field(gt=0)]
Amount: TypeAlias = Annotated[float, Field(ge=0)]
Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]

_Stages = Field(min_length=1, max_length=MOST_STAGES)
Sizes: TypeAlias = Annotated[Sequence[Size], _Stages]
Counts: TypeAlias = Annotated[Sequence[Count], _Stages]
Depths: TypeAlias = Annotated[Sequence[Annotated[int, Field(ge=0, le=DEEPEST)]], _Stages]
StageDepths: TypeAlias = Annotated[Sequence[Depths], _Stages]
Positives: TypeAlias = Annotated[Sequence[Positive], _Stages]
Shares: TypeAlias = Annotated[Sequence[Share], _Stages]

_WORDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "is_instance_of": "a list",
    "sequence_str": "a list",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less",
    "too_short": "a list of {min_length} values or more",
    "too_long": "a list of {max_length} values or fewer",
}
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)  # no "3" and no True for 3


def check_values(name: str, builder: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuse values that the signature of ``builder`` does not allow.

    Args:
        name: the system, for the message.
        builder: a class or function with annotated arguments.
        given: values by argument; all of them are arguments of ``builder``.

    Raises:
        ModelError: a value of the wrong type or out of range; the message names its argument.
    """
    if not given:
        return
    annotated = builder.__init__ if isinstance(builder, type) else builder  # type: ignore[misc]
    hints = typing.get_type_hints(annotated, include_extras=True)
    for key, value in given.items():
        try:
            TypeAdapter(hints[key], config=_STRICT).validate_python(value)
        except ValidationError as error:
            raise ModelError(
                f"{name} cannot be built with {key}={reprlib.repr(value)}: {in_words(error)}.",
                "Change or drop it.",
            ) from None


def plain(value: Any) -> Any:
    """Return a value without NumPy's types, as it can be written to a file."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value


def whole_number(what: str, value: Any, least: int, most: int) -> int:
    """Return a whole number within limits, whatever integer type it has.

    Raises:
        ModelError: it is none, or out of range.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not least <= number <= most:
        raise ModelError(
            f"{what} cannot be {reprlib.repr(value)}.",
            f"Give a whole number from {least} to {most}.",
        )
    return number


def checked_image_size(what: str, value: Any) -> ImageSize:
    """Return an image size within limits: the side where it is square, else ``(height, width)``.

    Args:
        what: whose size, for the message.
        value: a whole number, or a list, tuple or array of two.

    Raises:
        ModelError: it is neither, or out of range.
    """
    sides = value.tolist() if hasattr(value, "tolist") else value
    sides = sides if isinstance(sides, list | tuple) else [sides, sides]
    try:
        height, width = (whole_number(what, side, 1, MOST_IMAGE_SIZE) for side in sides)
    except (ValueError, ModelError):  # not two sides, or one that is not a positive integer
        raise ModelError(
            f"{what} cannot be {reprlib.repr(value)}.",
            f"Give a whole number from 1 to {MOST_IMAGE_SIZE}, or two of them: (height, width).",
        ) from None
    return height if height == width else (height, width)


def in_words(error: ValidationError) -> str:
    """Say in words what a value must be: of a list, which item; of several types, each."""
    told: dict[str, list[str]] = {}
    for issue in error.errors(include_url=False):
        items = [str(part) for part in issue["loc"] if isinstance(part, int)]
        subject = f"item {'.'.join(items)}" if items else "it"
        words = _WORDS.get(issue["type"], issue["msg"]).format(**issue.get("ctx", {}))
        if words not in told.setdefault(subject, []):
            told[subject].append(words)
    return "; ".join(f"{subject} must be {' or '.join(words)}" for subject, words in told.items())
