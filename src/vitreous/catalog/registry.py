"""Every system by name, found without importing any of them.

A system is a file ``models/<slug>.py`` or ``methods/<stage>/<slug>.py`` with ``CARD = Card(...)`` at its top. The
card is read from the source text, so listing a hundred systems costs milliseconds; building one imports its file
and no other. Names of variants begin with the slug.
"""

from __future__ import annotations

import ast
import fnmatch
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from vitreous.catalog.card import Card
from vitreous.errors import ModelError, did_you_mean, listed

if TYPE_CHECKING:
    from torch import Tensor, nn

STAGES = ("adapt", "reduce", "quantize")  # of methods, in the order in which they are applied
RESTORERS = ("restorer", "filter")  # kinds of systems that turn cubes into cubes
MODULES = ("model", *RESTORERS)  # kinds of systems that are built by create_model
_ROOMS = ("models", "methods")
_PACKAGE = Path(__file__).parents[1]


def cards() -> list[Card]:
    """Return the cards of all systems, sorted by slug."""
    return sorted(_catalogue()[0].values(), key=lambda c: c.slug)


def card(name: str) -> Card:
    """Return the card of a system, by its slug or by the name of one of its variants.

    Raises:
        ModelError: no such system.
    """
    by_slug, _ = _catalogue()
    if name in by_slug:
        return by_slug[name]
    for entry in by_slug.values():
        if name in entry.variants:
            return entry
    known = [*by_slug, *(variant for entry in by_slug.values() for variant in entry.variants)]
    raise ModelError(f"There is no system named '{name}'.", did_you_mean(name, known))


def list_models(pattern: str = "*", kind: str | None = None) -> list[str]:
    """Return the names of all variants that match a shell pattern such as ``lola*``."""
    return sorted(
        variant
        for entry in cards()
        if kind is None or entry.kind == kind
        for variant in entry.variants
        if fnmatch.fnmatch(variant, pattern)
    )


def system_module(name: str) -> ModuleType:
    """Import the file of a system, by slug or variant name, and no other system."""
    return importlib.import_module(_catalogue()[1][card(name).slug])


def stage(name: str) -> str:
    """Return the stage of a method, which its folder is named after: ``adapt``, ``reduce`` or ``quantize``."""
    return _catalogue()[1][card(name).slug].split(".")[-2]


def create_model(
    name: str,
    *,
    bands: int,
    num_classes: int | None = None,
    image_size: int | None = None,
    **changes: Any,
) -> nn.Module:
    """Build a model by the name of its variant, with fresh weights.

    Args:
        name: a variant, e.g. ``lola_specvit_tiny`` (see :func:`list_models`).
        bands: channels of the input.
        num_classes: classes to tell apart; restorers tell none apart.
        image_size: side of the image or patch in pixels, 15 when None; restorers take any.
        changes: constructor arguments that differ from the variant's.

    Raises:
        ModelError: no such variant, no such argument (with the nearest known one), a value of it that
            makes no model, or no number of classes for what classifies.
    """
    entry = card(name)
    if entry.kind not in MODULES:
        raise ModelError(
            f"'{name}' is no network but a {entry.kind}.",
            f"Networks: {listed(n for kind in MODULES for n in list_models(kind=kind))}.",
        )
    if name not in entry.variants:
        raise ModelError(
            f"'{name}' has several variants.", f"Choose one of {', '.join(entry.variants)}."
        )
    builder = system_module(name).build
    check_arguments(name, builder, changes)
    sizes = _sizes(entry, name, num_classes, image_size)
    try:
        model: Any = builder(bands=bands, **sizes, **{**entry.variants[name], **changes})
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        if not changes:
            raise
        raise ModelError(
            f"{name} cannot be built with {changes}: {error}.", "Change or drop these arguments."
        ) from error
    model.variant, model.arguments = name, dict(changes)  # what a file needs to rebuild it
    return cast("nn.Module", model)


def check_arguments(name: str, builder: Callable[..., Any], given: Iterable[str]) -> None:
    """Refuse arguments that what builds a system does not have.

    Raises:
        ModelError: there is one; the message names the nearest known.
    """
    known = inspect.signature(builder).parameters
    for key in given:
        if key not in known:
            raise ModelError(f"{name} has no argument '{key}'.", did_you_mean(key, known))


def _sizes(
    entry: Card, name: str, num_classes: int | None, image_size: int | None
) -> dict[str, int]:
    """Return the arguments that only networks of some kinds have."""
    if entry.kind in RESTORERS:
        if num_classes is not None or image_size is not None:
            raise ModelError(
                f"'{name}' restores cubes of any size and knows no classes.",
                "Leave num_classes and image_size out.",
            )
        return {}
    if num_classes is None:
        raise ModelError(f"'{name}' classifies.", "Say how many classes with num_classes=.")
    return {"num_classes": num_classes, "image_size": image_size or 15}


def from_reference(
    slug: str, state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]
) -> nn.Module:
    """Build a system from its authors' constructor arguments and load weights in their layout.

    Every tensor must find its place and every place its tensor: a partial load is refused.

    Args:
        slug: the system.
        state_dict: the authors' tensors under the authors' names.
        kwargs: the authors' constructor arguments.

    Raises:
        ModelError: no such system, or it has no published layout.
        CheckpointError: tensors are missing, left over or of another shape.
    """
    from vitreous.errors import CheckpointError

    module = system_module(slug)
    if not hasattr(module, "from_reference"):
        raise ModelError(f"'{slug}' has no reference layout to load from.")
    try:
        model: nn.Module = module.from_reference(state_dict, kwargs)
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights do not fit {slug}: {error}", "Check the arguments they belong to."
        ) from error
    except KeyError as error:
        raise ModelError(
            f"The arguments of {slug} lack {error}.", "Give the authors' constructor arguments."
        ) from error
    return model


@functools.cache
def _catalogue() -> tuple[dict[str, Card], dict[str, str]]:
    """Return cards by slug, and module names by slug."""
    found: dict[str, Card] = {}
    modules: dict[str, str] = {}
    for room in _ROOMS:
        for path in sorted((_PACKAGE / room).rglob("*.py")):
            if path.stem.startswith("_"):
                continue
            entry = _read_card(path)
            if entry.slug in found:
                raise RuntimeError(
                    f"Two systems are called {entry.slug}: {path} and {modules[entry.slug]}"
                )
            found[entry.slug] = entry
            modules[entry.slug] = ".".join(
                ("vitreous", *path.relative_to(_PACKAGE).with_suffix("").parts)
            )
    return found, modules


def _read_card(path: Path) -> Card:
    """Evaluate the literal ``CARD = Card(...)`` in a source file without running it."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "CARD"
            and isinstance(node.value, ast.Call)
        ):
            entry = Card(**{str(k.arg): ast.literal_eval(k.value) for k in node.value.keywords})
            if entry.slug != path.stem:
                raise RuntimeError(
                    f"{path} holds the card of {entry.slug}: the file must be named after it"
                )
            return entry
    raise RuntimeError(f"{path} has no literal CARD = Card(...) at its top")
