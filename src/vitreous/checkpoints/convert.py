"""Networks that others published: whose layout weights have, which variant they fit, and what they were made for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vitreous.catalog.arguments import (
    MOST_IMAGE_SIZE,
    ImageSize,
)
from vitreous.catalog.registry import card, kind_of, system_module
from vitreous.catalog.tensors import DERIVED, check_finite
from vitreous.checkpoints import hub
from vitreous.checkpoints.assembly import assemble, has_shape
from vitreous.checkpoints.blueprints import (
    Blueprint,
    bands_wanted,
    check_sizes,
    size_wanted,
)
from vitreous.checkpoints.foreign import Foreign, read_foreign
from vitreous.checkpoints.layouts import Layout, recognise
from vitreous.checkpoints.load_report import LoadReport, PartialLoadError, sized
from vitreous.errors import CheckpointError, ModelError, VitreousError
from vitreous.layers.bands import Bands
from vitreous.layers.sizes import as_size

# Sides of the images that published weights were trained on, the usual one first.
PUBLISHED_SIZES = (224, 384, 256, 240, 288, 336, 448, 512, 518)


def convert(
    path: str | Path,
    name: str,
    *,
    bands: int | Bands | None = None,
    num_classes: int | None = None,
    image_size: ImageSize | None = None,
    model_args: Mapping[str, Any] | None = None,
    source_bands: Bands | None = None,
    method: str = "auto",
    partial: bool = False,
) -> tuple[Any, LoadReport]:
    """Load what others published: a state dict in the layout of an architecture's authors or of timm.

    Bands, classes, image size and options that the variant leaves open are read off the weights' names and shapes.

    Args:
        path: a ``.pth``, ``.pt``, ``.bin``, ``.ckpt`` or ``.safetensors`` file, or ``hf://user/name/file``.
        name: the variant that the weights belong to.
        bands: the bands that the model should read, or how many; those of the weights where None. Needed where the
            weights do not depend on the number of bands.
        num_classes: classes; where the weights have other ones or no head, the head is new.
        image_size: side of the images in pixels, or ``(height, width)``; where None, a usual one that the weights fit, else 224.
        model_args: arguments that differ from the variant's.
        source_bands: what is known of the bands that the weights were trained on.
        method: how the first layer is made for other bands.
        partial: accept weights that do not fill the model; what is missing is fresh.

    Returns:
        The model, in evaluation mode, and the report.

    Raises:
        CheckpointError: a damaged file, one with code in it or with NaN or infinite weights, or
            (:class:`PartialLoadError`) weights that do not fit; the message says whose they look like.
        ModelError: no such variant or argument, classes or an image size of a restorer, or bands that cannot be
            adapted or told from the weights.
    """
    if not kind_of(name).gradient:
        raise ModelError(f"'{name}' is not a network.", "Give the name of a model with weights.")
    check_sizes(name, num_classes, image_size)
    file = hub.local(path)
    foreign = read_foreign(file)
    if foreign.header is not None:
        raise CheckpointError(f"{path} is already a vitreous file.", "Use load_model.")
    check_finite(foreign.tensors, str(path))
    count = bands.count if isinstance(bands, Bands) else bands
    classes = 2 if num_classes is None else num_classes
    probe = Blueprint.of(name, Bands(count or 3), classes, PUBLISHED_SIZES[0])
    probe = replace(
        probe, model_args=dict(model_args or {}), image_size=size_wanted(image_size, probe)
    )
    tensors, probe, told = _identified(foreign, probe, str(path), partial)
    if image_size is None and probe.image_size is not None:
        probe = _usual_size(tensors, probe)
    found = count_bands(tensors, probe) or count
    if found is None:
        raise _no_bands(probe, str(path), sized(told["layout"], _count_parameters(tensors)))
    own = source_bands if source_bands is not None else Bands(found)
    if own.count != found:
        raise ModelError(
            f"The weights in {path} take {found} bands, but {own.count} are described.",
            "Describe the bands that they were trained on.",
        )
    known = _count_classes(tensors, probe)
    classifies = probe.num_classes is not None
    if classifies and known is None and num_classes is None:
        raise CheckpointError(f"{path} has no head.", "Give the number of classes of a new head.")
    made = replace(probe, bands=own, num_classes=probe.num_classes if known is None else known)
    wanted = replace(
        made,
        bands=bands_wanted(bands, own),
        num_classes=made.num_classes if num_classes is None else num_classes,
    )
    told |= {"parameters": _count_parameters(tensors), "classes": known}
    try:
        model, report = assemble(
            tensors,
            made,
            wanted,
            source=str(path),
            part=foreign.part,
            method=method,
            partial=partial,
            headless=classifies and known is None,
        )
    except PartialLoadError as error:
        report = _told(error.report, told)
        raise PartialLoadError(report, _advice(report, tensors, name)) from None
    return model, _told(report, told)


def _renamed(tensors: dict[str, Tensor], probe: Blueprint, source: str) -> dict[str, Tensor]:
    """Give foreign tensors the model's names, unless they have them already."""
    rename = getattr(system_module(probe.name), "rename", None)
    if rename is None or set(probe.build_empty().state_dict()) <= set(tensors):
        return tensors
    try:
        renamed: dict[str, Tensor] = rename(tensors)
    except (LookupError, ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"The weights in {source} do not have the layout of {probe.name}: {error!r}.",
            "Give the architecture they belong to.",
        ) from error
    return renamed


def _told(report: LoadReport, told: dict[str, Any]) -> LoadReport:
    """Add to the report of a load what was known before it."""
    grown = {
        "derived": report.derived + told["derived"],
        "left_over": report.left_over + told["unread"],
    }
    return replace(report, **{**told, **grown})


def _identified(
    foreign: Foreign, probe: Blueprint, source: str, partial: bool
) -> tuple[dict[str, Tensor], Blueprint, dict[str, Any]]:
    """Return tensors under our names, the blueprint with the options that they decide, and what a report says of both.

    Raises:
        CheckpointError: they are of another architecture, and not to be loaded in part.
    """
    layout = recognise(foreign.tensors)
    if not partial:
        _check_slug(layout, probe.name, foreign.tensors, source)
    tensors = _renamed(foreign.tensors, probe, source)
    gone = _gone(foreign.tensors, tensors)
    derived = tuple(key for key in gone if key.endswith(DERIVED))
    title = "" if layout is None else layout.title
    if layout is None and set(probe.build_empty().state_dict()) <= set(foreign.tensors):
        title = "vitreous's own names"
    made, read = _read_settings(probe, tensors, published=layout is not None)
    kept, unread = _without_unread(tensors, foreign, made)
    told = {
        "layout": title,
        "read": read,
        "unread": unread,
        "derived": derived,
        "rewritten": tuple(key for key in gone if key not in derived),
    }
    return kept, made, told


def _check_slug(layout: Layout | None, name: str, tensors: dict[str, Tensor], source: str) -> None:
    """Refuse weights that are clearly those of another architecture than the one named.

    Raises:
        CheckpointError: they are; the message says whose they look like, and which variant that is.
    """
    if layout is None or layout.slug == card(name).slug:
        return
    if not hasattr(system_module(name), "LAYOUTS"):  # of an architecture that was never published
        return
    problem = f"{source} looks like {layout.title}, not like {name}."
    if layout.slug is None:
        raise CheckpointError(problem, "vitreous does not include that architecture.")
    other = card(layout.slug)
    probe = Blueprint.of(next(iter(other.variants)), Bands(3), 2, PUBLISHED_SIZES[0])
    renamed = _renamed(tensors, probe, source)
    variant = _variant_like(other.slug, renamed)
    if variant is None:
        raise CheckpointError(
            problem, f"Give the matching variant of {other.slug}, with the arguments that differ."
        )
    raise CheckpointError(problem, f"It has the shapes of {variant}: use that name.")


def _read_settings(
    probe: Blueprint, tensors: Mapping[str, Tensor], published: bool = True
) -> tuple[Blueprint, dict[str, Any]]:
    """Give a blueprint the options that its variant leaves open and the weights decide; return these, too.

    Args:
        probe: the blueprint.
        tensors: the weights under our names.
        published: they came in a layout of others, and were trained as these do it (``AS_PUBLISHED``).
    """
    module = system_module(probe.name)
    told = dict(getattr(module, "AS_PUBLISHED", {})) if published else {}
    if hasattr(module, "read_settings"):
        told |= module.read_settings(tensors, probe.image_size)
    defaults = inspect.signature(module.build).parameters
    stated = {**card(probe.name).variants[probe.name], **probe.model_args}
    read = {
        key: value
        for key, value in told.items()
        if key not in stated and value != defaults[key].default
    }
    return replace(probe, model_args={**read, **probe.model_args}), read


def _without_unread(
    tensors: dict[str, Tensor], foreign: Foreign, probe: Blueprint
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Set aside tensors that are not the network's: those of its pre-training, and of a wrapper around it."""
    own = probe.build_empty().state_dict()
    prefixes = getattr(system_module(probe.name), "UNREAD", ())
    beside = {id(foreign.tensors[key]) for key in foreign.beside}
    unread = [
        key
        for key, value in tensors.items()
        if key not in own and (key.startswith(tuple(prefixes)) or id(value) in beside)
    ]
    return {key: value for key, value in tensors.items() if key not in unread}, tuple(unread)


def _count_parameters(tensors: Mapping[str, Tensor]) -> int:
    """Count what a network in a file has learned."""
    passive = (*DERIVED, "running_mean", "running_var")
    return sum(value.numel() for key, value in tensors.items() if not key.endswith(passive))


def _advice(report: LoadReport, tensors: Mapping[str, Tensor], name: str) -> str:
    """Say which variant weights look like that do not fit the one named."""
    slug = card(name).slug
    variant = _variant_like(slug, tensors)
    if variant is not None and variant != name:
        return f"They look like {variant} ({report.found}); use that name."
    positions = [said for said in report.misshapen if "pos" in said.partition(" ")[0]]
    if positions:
        return (
            f"The file holds: {report.found}. If it was trained on images that were not square, give their height and "
            "width as the image size."
        )
    return (
        f"The file holds: {report.found}. Name the variant, arguments and image size that they belong to, or ask for "
        "a partial load."
    )


def _variant_like(slug: str, tensors: Mapping[str, Tensor]) -> str | None:
    """Name the variant that weights under our names have the shapes of, or None where there is none.

    Of several, the one that most tensors fit, and of these the one that says most about itself.
    """
    best: tuple[tuple[int, int], str] | None = None
    for variant in card(slug).variants:
        if variant.endswith("_test"):
            continue
        probe, read = _read_settings(
            Blueprint.of(variant, Bands(3), 2, PUBLISHED_SIZES[0]), tensors
        )
        rank = (_alike(probe, tensors), -len(read))
        if rank[0] and (best is None or rank > best[0]):
            best = rank, variant
    return None if best is None else best[1]


def _alike(probe: Blueprint, tensors: Mapping[str, Tensor]) -> int:
    """Count the tensors that fit a variant; 0 where others do not but for bands, classes and the image's size."""
    try:
        own = probe.build_empty()
    except VitreousError:
        return 0
    shapes = {key: value.shape for key, value in own.state_dict().items()}
    apart = {key for key in shapes.keys() ^ tensors.keys() if not key.endswith(DERIVED)}
    if any(not key.startswith(("head", "distillation_head")) for key in apart):
        return 0
    fits = {key for key in shapes if key in tensors and has_shape(key, tensors, shapes)}
    inner = {
        key for key in shapes if key.endswith(("fc1.weight", "fc1.conv.weight", "proj.weight"))
    }
    return len(fits) if inner <= fits else 0


def _gone(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Name the tensors that renaming did not hand on as they were."""
    kept = {id(value) for value in after.values()}
    return [key for key, value in before.items() if id(value) not in kept]


def _usual_size(tensors: Mapping[str, Tensor], probe: Blueprint) -> Blueprint:
    """Return ``probe`` for the image size at which most of the tensors have the right shape; the usual one in doubt."""
    read = getattr(system_module(probe.name), "read_image_size", lambda weights: None)
    stated = read(tensors)
    sizes = PUBLISHED_SIZES if stated is None else (stated, *PUBLISHED_SIZES)
    best, most = probe, -1
    for size in sizes:
        if not all(1 <= side <= MOST_IMAGE_SIZE for side in as_size(size)):
            continue
        made = replace(probe, image_size=size)
        own = made.build_empty().state_dict()
        common = [key for key in own if key in tensors]
        fits = sum(tensors[key].shape == own[key].shape for key in common)
        if fits > most:
            best, most = made, fits
        if fits == len(common):
            break
    return best


def count_bands(tensors: Mapping[str, Tensor], probe: Blueprint) -> int | None:
    """Return the number of bands that the weights read, or None where they do not tell."""
    model = probe.build_empty()
    for name in model.band_parameters:
        axis = model.band_axis(name)
        if name in tensors and tensors[name].ndim > axis:
            return int(tensors[name].shape[axis])
    return None


def _count_classes(tensors: Mapping[str, Tensor], probe: Blueprint) -> int | None:
    """Return the number of classes of the weights' head, or None where they have none."""
    if probe.num_classes is None:
        return None
    few, many = (replace(probe, num_classes=count).build_empty().state_dict() for count in (2, 3))
    for name, value in few.items():
        differ = [axis for axis, n in enumerate(value.shape) if many[name].shape[axis] != n]
        if differ and name in tensors and tensors[name].ndim == value.ndim:
            return int(tensors[name].shape[differ[0]])
    return None


def _no_bands(probe: Blueprint, source: str, found: str) -> VitreousError:
    """Say why the number of bands cannot be read off weights."""
    needed = probe.build_empty().band_parameters
    if needed:
        return CheckpointError(
            f"{source} does not look like {probe.name}: it has no {needed[0]}. It holds: {found}.",
            "Give the architecture it belongs to.",
        )
    return ModelError(
        f"The weights of {probe.name} work with any number of bands.", "Give the number of bands."
    )
