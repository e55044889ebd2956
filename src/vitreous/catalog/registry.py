"""Every system by name, found without importing any of them.

A system is a file ``models/<slug>.py`` or ``methods/<stage>/<slug>.py`` with ``CARD = Card(...)`` at its top. The
card is read from the source text, so listing a hundred systems costs milliseconds; building one imports its file
and no other. Names of variants begin with the slug.
"""

from __future__ import annotations

import fnmatch
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from vitreous.catalog import plugins
from vitreous.catalog.arguments import (
    MOST_BANDS,
    MOST_CLASSES,
    ImageSize,
    check_values,
    checked_image_size,
    plain,
    whole_number,
)
from vitreous.catalog.card import Card
from vitreous.catalog.kinds import Kind, kinds
from vitreous.catalog.lookup import load
from vitreous.catalog.results import physical_memory
from vitreous.catalog.tasks import tasks
from vitreous.catalog.tensors import check_finite, without_prefix
from vitreous.errors import CheckpointError, ConfigError, ModelError, did_you_mean, listed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitreous.layers.bands import Bands

# Of methods, in the order in which they are applied, and of those that act while a model is trained.
STAGES = ("adapt", "prune", "reduce", "robust", "quantize")
TRAINING_STAGES = ("distill", "pretrain")
DEFAULT_IMAGE_SIZE = 15
ORDINARY = 1024  # bands, classes or pixels, up to which every variant fits into any memory
_ROOMS = ("models", "methods")
_PACKAGE = Path(__file__).parents[1]


def cards() -> list[Card]:
    """Return the cards of all systems, sorted by slug."""
    return sorted(_catalogue()[0].values(), key=lambda c: c.slug)


def card(name: str, kind: str | None = None, stage: str | None = None) -> Card:
    """Return the card of a system.

    Args:
        name: its slug, or the name of one of its variants.
        kind: what is looked for, as far as the message about an unknown name goes.
        stage: that of the methods which are looked for, likewise.

    Raises:
        ModelError: no such system.
    """
    by_slug, _ = _catalogue()
    if name in by_slug:
        return by_slug[name]
    for entry in by_slug.values():
        if name in entry.variants:
            return entry
    asked = [
        entry
        for entry in by_slug.values()
        if (kind is None or entry.kind == kind) and (stage is None or _stage_of(entry) == stage)
    ]
    known = [word for entry in asked for word in (entry.slug, *entry.variants)]
    word = "system" if kind is None else kinds()[kind].title
    raise ModelError(f"Unknown {word}: {name}.", did_you_mean(name, known))


def kind_of(name: str) -> Kind:
    """Return the kind of a system, by its slug or by the name of one of its variants.

    Raises:
        ModelError: no such system.
    """
    return kinds()[card(name).kind]


def list_models(pattern: str = "*", kind: str | None = None) -> list[str]:
    """Return the names of all variants that match a shell pattern such as ``lola*``.

    Args:
        pattern: of the names.
        kind: only those of a kind (:mod:`vitreous.catalog.kinds`).
    """
    return sorted(
        variant
        for entry in cards()
        if kind is None or entry.kind == kind
        for variant in entry.variants
        if fnmatch.fnmatch(variant, pattern)
    )


def system_module(name: str) -> ModuleType:
    """Import the file of a system, by slug or variant name, and no other system."""
    module: ModuleType = load(_catalogue()[1][card(name).slug].module)
    return module


def package_of(name: str) -> str:
    """Return the distribution that a system came with, by slug or variant name."""
    return _catalogue()[1][card(name).slug].package


def stage(name: str) -> str:
    """Return the stage of a method, which its folder is named after (``STAGES``, ``TRAINING_STAGES``)."""
    return _stage_of(card(name, "method"))


def _stage_of(entry: Card) -> str:
    return entry.stage or _catalogue()[1][entry.slug].module.split(".")[-2]


def create_model(
    name: str,
    *,
    bands: int | Bands,
    num_classes: int | None = None,
    image_size: ImageSize | None = None,
    **changes: Any,
) -> nn.Module:
    """Build a model by the name of its variant, with fresh weights.

    Args:
        name: a variant, e.g. ``lola_specvit_tiny`` (see :func:`list_models`).
        bands: channels of the input: their number, or a :class:`~vitreous.layers.bands.Bands` with what is known of
            them. Networks whose card says ``input="wavelengths"`` are told all of it, others their number.
        num_classes: classes to tell apart, or 0 for a network that returns the features its head would read;
            restorers tell none apart.
        image_size: side of the image or patch in pixels, or ``(height, width)``; 15 when None; restorers take any.
        changes: constructor arguments that differ from the variant's.

    Raises:
        ModelError: no such variant, no such argument (with the nearest known one), a value of it that
            makes no model, no number of classes for what classifies, or more weights than the machine's memory holds.
    """
    entry = _buildable(name)
    builder = system_module(name).build
    changes = {key: plain(value) for key, value in changes.items()}
    check_arguments(name, builder, changes)
    spectrum = cast("Bands", bands) if hasattr(bands, "wavelengths") else None
    count = bands if spectrum is None else spectrum.count
    sizes = _sizes(entry, name, count, num_classes, image_size)
    told: dict[str, Any] = sizes
    if entry.input == "wavelengths":
        if spectrum is None or spectrum.wavelengths is None:
            raise ModelError(
                f"'{name}' reads the wavelengths of its bands, which are not known.",
                "Give bands=Bands(count, wavelengths); train on a scene that knows them, with --reduction none.",
            )
        told = {**sizes, "bands": spectrum}
    build = functools.partial(
        _build, name, builder, {**entry.variants[name], **changes}, told, changes
    )
    if changes or not _ordinary(sizes):
        _check_weights(name, build, changes)
    model: Any = build()
    model.variant, model.arguments = name, changes  # what a file needs to rebuild it
    model.spectrum = spectrum
    return cast("nn.Module", model)


def check_arguments(name: str, builder: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuse arguments that what builds a system does not have, and values that it does not take.

    Raises:
        ModelError: there is one; the message names the argument, or the nearest known.
    """
    parameters = inspect.signature(builder).parameters
    known = [
        key for key, parameter in parameters.items() if parameter.default is not parameter.empty
    ]
    for key in given:
        if key not in known:
            raise ModelError(f"{name} has no argument '{key}'.", did_you_mean(key, known))
    check_values(name, builder, given)


def check_system(
    name: str,
    arguments: Mapping[str, Any],
    *,
    bands: int | None = None,
    image_size: ImageSize | None = None,
) -> nn.Module | None:
    """Refuse a system's arguments before anything is read: build it once without memory.

    Args:
        name: a variant of a network, or a classical estimator.
        arguments: what differs from the variant's own.
        bands: channels of the input; where they are not known yet, arguments that are about them are only checked
            for their type.
        image_size: side of the image in pixels, or ``(height, width)``, of a network that classifies.

    Returns:
        The network on the meta device, None for an estimator.

    Raises:
        ModelError: no such variant or argument, or a value that makes no model.
        ConfigError: an estimator cannot have these settings.
    """
    verify = kind_of(name).verify
    if not verify:
        raise _not_built(name)
    found: nn.Module | None = load(verify)(name, arguments, bands, image_size)
    return found


def check_network(
    name: str, arguments: Mapping[str, Any], bands: int | None, image_size: int | None
) -> nn.Module:
    """Do for networks and filters what :func:`check_system` says."""
    import torch

    _buildable(name)
    builder = system_module(name).build
    check_arguments(name, builder, arguments)
    about_bands = getattr(builder, "band_arguments", ()) if bands is None else ()
    known = {key: value for key, value in arguments.items() if key not in about_bands}
    sizes = sizes_for(name, num_classes=2, image_size=image_size)
    with torch.device("meta"):
        return create_model(name, bands=_some_bands(name, bands or 8), **sizes, **known)


def _some_bands(name: str, count: int) -> int | Bands:
    """Return bands that a network can be built for, whatever scene it will be given."""
    if card(name).input != "wavelengths":
        return count
    from vitreous.layers.bands import Bands

    return Bands(count, tuple(400.0 + 2000.0 * k / count for k in range(count)))


def check_estimator(
    name: str, arguments: Mapping[str, Any], bands: int | None, image_size: int | None
) -> None:
    """Do for classical estimators, which know no sizes, what :func:`check_system` says."""
    settings = {**_variant(name).variants[name], **arguments}
    build = system_module(name).build
    known = inspect.signature(build.__self__).parameters
    check_values(name, build.__self__, {k: v for k, v in settings.items() if k in known})
    # It only keeps its bands, which are not known yet. Unknown settings are its own to refuse.
    build(num_classes=2, contract=None, **settings)


def sizes_for(name: str, **offered: Any) -> dict[str, Any]:
    """Return those of the offered sizes that a system of this kind is built with."""
    return {size: offered[size] for size in kind_of(name).sizes}


def check_task(name: str, task: str, *, baseline: bool = False) -> None:
    """Refuse a system that a task does not train, or does not compare with.

    Args:
        name: a variant.
        task: the task.
        baseline: whether it is compared with only.

    Raises:
        ConfigError: it is for something else; the message says for what.
        ModelError: there is no such system, or it has several variants.
    """
    entry, kind, asked = card(name), kind_of(name), tasks()[task]
    wanted = asked.baselines if baseline else asked.kinds
    if kind.name in wanted and asked.serves(entry.tasks):
        _variant(name)
        return
    suitable = (entry for entry in cards() if entry.kind in wanted and asked.serves(entry.tasks))
    names = [n for other in suitable for n in other.variants if not n.endswith("_test")]
    choice = f"one of {listed(names)} (see 'vitreous systems')."
    what = f"'{name}' is {an(kind.title)}"
    if baseline and kind.name in asked.kinds and asked.serves(entry.tasks):
        why = (
            f"and needs training; 'vitreous {asked.verb}' compares with systems that need none"
            if kind.gradient
            else "and cannot be a baseline: it chooses among systems"
        )
        raise ConfigError(f"{what} {why}.", f"Choose {choice}")
    verbs = [
        f"Train it with 'vitreous {other.verb}'"
        for other in tasks().values()
        if kind.name in other.kinds and other.serves(entry.tasks)
    ]
    ways = [*verbs, kind.advice] if kind.advice else verbs
    advice = f"{ways[0]}, or choose {choice}" if ways else f"Choose {choice}"
    raise ConfigError(f"{what}, which does not {asked.deed}.", advice)


def an(noun: str) -> str:
    """Return a noun with its article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _variant(name: str) -> Card:
    """Return the card of a variant.

    Raises:
        ModelError: it is the name of a system with several.
    """
    entry = card(name)
    if name not in entry.variants:
        raise ModelError(
            f"'{name}' has several variants.", f"Choose one of {', '.join(entry.variants)}."
        )
    return entry


def _not_built(name: str) -> ModelError:
    built = (kind.name for kind in kinds().values() if kind.buildable)
    return ModelError(
        f"'{name}' is not a network (kind: {card(name).kind}).",
        f"Networks: {listed(n for kind in built for n in list_models(kind=kind))}.",
    )


def _buildable(name: str) -> Card:
    """Return the card of a variant that :func:`create_model` builds."""
    if not kind_of(name).buildable:
        raise _not_built(name)
    return _variant(name)


def _build(
    name: str,
    builder: Callable[..., nn.Module],
    arguments: Mapping[str, Any],
    sizes: Mapping[str, Any],
    changes: Mapping[str, Any],
) -> nn.Module:
    """Build a network; what Python or torch has to say about impossible arguments is said with their names."""
    try:
        return builder(**sizes, **arguments)
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        if not changes:
            raise
        raise ModelError(
            f"{name} cannot be built with {dict(changes)}: {error}.",
            "Change or drop these arguments.",
        ) from error


def _check_weights(name: str, build: Callable[[], nn.Module], changes: Mapping[str, Any]) -> None:
    """Refuse a network without width or of more weights than there is memory for; done without memory."""
    import torch

    weighted = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty layers, which are refused here
        model = build()
    for at, layer in model.named_modules():
        if isinstance(layer, weighted) and not layer.weight.numel():
            raise ModelError(
                f"{name} cannot be built with {dict(changes)}: the weight of {at} would have the shape "
                f"{tuple(layer.weight.shape)}.",
                "Give larger widths or ratios.",
            )
    if torch.get_default_device().type == "meta":
        return
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    memory = physical_memory()
    if memory is not None and size > memory:
        raise ModelError(
            f"The weights of {name} would take {size / 2**30:,.1f} GiB; this machine has {memory / 2**30:,.1f} GiB.",
            "Give fewer bands, smaller images or a smaller variant.",
        )


def _ordinary(sizes: Mapping[str, ImageSize]) -> bool:
    """Tell whether every variant of these sizes fits into any memory."""
    numbers = ([size] if isinstance(size, int) else size for size in sizes.values())
    return max(map(max, numbers)) <= ORDINARY


def _sizes(
    entry: Card, name: str, bands: Any, num_classes: Any, image_size: Any
) -> dict[str, ImageSize]:
    """Return the checked sizes that systems of this kind are built with."""
    kind = kinds()[entry.kind]
    given = {"num_classes": num_classes, "image_size": image_size}
    extra = [size for size, value in given.items() if value is not None and size not in kind.sizes]
    if extra:
        raise ModelError(
            f"'{name}' is {an(kind.title)}, which has no {' and no '.join(extra)}.",
            f"Omit {' and '.join(extra)}.",
        )
    sizes: dict[str, ImageSize] = {"bands": whole_number(f"bands of {name}", bands, 1, MOST_BANDS)}
    if "num_classes" in kind.sizes:
        if num_classes is None:
            raise ModelError(
                f"'{name}' classifies.",
                "Give the number of classes with num_classes=, or 0 for features.",
            )
        sizes["num_classes"] = whole_number(f"num_classes of {name}", num_classes, 0, MOST_CLASSES)
    if "image_size" in kind.sizes:
        size = DEFAULT_IMAGE_SIZE if image_size is None else image_size
        sizes["image_size"] = checked_image_size(f"image_size of {name}", size)
    return sizes


def from_reference(
    slug: str, state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]
) -> nn.Module:
    """Build a system from its authors' constructor arguments and load weights in their layout.

    Every tensor must find its place and every place its tensor: a partial load is refused.

    Args:
        slug: the system.
        state_dict: the authors' tensors under the authors' names, or with those of a wrapper (``module.``) before them.
        kwargs: the authors' constructor arguments.

    Raises:
        ModelError: no such system, or it has no published layout.
        CheckpointError: tensors are missing, left over, of another shape, or hold NaN or infinite values.
    """
    module = system_module(slug)
    if not hasattr(module, "from_reference"):
        raise ModelError(f"'{slug}' has no reference layout to load from.")
    for given, what in ((state_dict, "weights"), (kwargs, "constructor arguments")):
        if not isinstance(given, Mapping):
            raise ModelError(
                f"The authors' {what} of {slug} are {given!r:.80}, not a dictionary.",
                "Give their state_dict, and the arguments that their model was built with ({} for none).",
            )
    try:
        weights = without_prefix(state_dict)
        check_finite(weights, f"The state_dict of {slug}")
        model: nn.Module = module.from_reference(weights, kwargs)
    except KeyError as error:
        raise ModelError(
            f"The arguments or weights of {slug} lack {error}.",
            "Give the authors' constructor arguments, and the whole state_dict.",
        ) from error
    # What others' arguments and tensors can be is unknown: they can fail in any of these ways.
    except (
        RuntimeError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
    ) as error:
        raise CheckpointError(
            f"The weights do not fit {slug}: {error}", "Check the arguments they belong to."
        ) from error
    return model


@functools.cache
def _catalogue() -> tuple[dict[str, Card], dict[str, plugins.Source]]:
    """Return cards, and where their systems stand, by slug; those of other packages are the last."""
    found: dict[str, Card] = {}
    places: dict[str, plugins.Source] = {}
    for source in _own_sources():
        entry = _read_card(source)
        if entry.slug in found:
            raise RuntimeError(
                f"Two systems are called {entry.slug}: {source} and {places[entry.slug]}"
            )
        found[entry.slug], places[entry.slug] = entry, source
    for source in plugins.sources(plugins.SYSTEMS):
        try:
            entry = _read_card(source)
            _check_foreign(entry, found)
        except plugins.Unreadable as error:
            plugins.leave_out(source.package, source.module, error)
            continue
        found[entry.slug], places[entry.slug] = entry, source
    return found, places


def _own_sources() -> Iterator[plugins.Source]:
    """Yield the files of our own systems."""
    for room in _ROOMS:
        for path in plugins.system_files(_PACKAGE / room):
            parts = path.relative_to(_PACKAGE).with_suffix("").parts
            yield plugins.Source(".".join(("vitreous", *parts)), path, "vitreous")


def _read_card(source: plugins.Source) -> Card:
    """Read the card at the top of a file.

    Raises:
        Unreadable: there is none, or it contradicts the file or the table of kinds.
    """
    entry = plugins.read_literal(source.path, "CARD", Card)
    if entry.slug != source.path.stem:
        raise plugins.Unreadable(
            f"{source.path} holds the card of {entry.slug}: the file must be named after it"
        )
    if entry.kind not in kinds():
        raise plugins.Unreadable(f"{source.path}: unknown kind: {entry.kind}")
    return entry


def _check_foreign(entry: Card, known: Mapping[str, Card]) -> None:
    """Refuse a card of another package that would stand in the way of one that is there.

    Raises:
        Unreadable: its name or that of a variant is taken, or variants are not named after it.
    """
    taken = {*known, *(variant for other in known.values() for variant in other.variants)}
    for name in (entry.slug, *entry.variants):
        if name in taken:
            raise plugins.Unreadable(f"there is a system named '{name}' already")
        if not name.startswith(entry.slug):
            raise plugins.Unreadable(f"the variant '{name}' is not named after '{entry.slug}'")
