"""A network filled with weights that were made for other bands, classes or image sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vitreous.catalog.arguments import (
    ImageSize,
)
from vitreous.catalog.registry import system_module
from vitreous.catalog.tensors import DERIVED
from vitreous.checkpoints.blueprints import Blueprint, Network
from vitreous.checkpoints.load_report import LoadReport, PartialLoadError
from vitreous.checkpoints.tensors import load_exactly
from vitreous.errors import CheckpointError, ModelError
from vitreous.layers.backbone import Backbone
from vitreous.layers.bands import Bands, adapt_bands, resize_kernel
from vitreous.methods._apply import applied, has, reinstall


def assemble(
    tensors: Mapping[str, Tensor],
    made: Blueprint,
    wanted: Blueprint,
    *,
    source: str,
    part: str = "",
    method: str = "auto",
    new_head: bool = False,
    partial: bool = False,
    headless: bool = False,
) -> tuple[Any, LoadReport]:
    """Build a model and fill it with weights that were made for other bands, classes or image size.

    Args:
        tensors: weights under the model's own names.
        made: what they were made for.
        wanted: what the model should be.
        source: where they come from, for messages.
        part: where in that file they were.
        method: how the first layer is made for other bands.
        new_head: replace the head even where the number of classes is the same.
        partial: accept missing and left-over tensors.
        headless: the weights have no head; it is new.

    Raises:
        PartialLoadError: tensors are missing or left over.
        ModelError: bands that cannot be adapted.
    """
    trunk = replace(wanted, num_classes=made.num_classes)
    # Nothing is allocated before the file's own tensors prove the sizes.
    empty = trunk.build_empty()
    shapes = {key: value.shape for key, value in empty.state_dict().items()}
    types = {key: value.dtype for key, value in empty.state_dict().items()}
    derived = tuple(key for key in tensors if key not in shapes and key.endswith(DERIVED))
    weights = {key: value for key, value in tensors.items() if key not in derived}
    weights, adapted, how, unmatched = adapt(weights, empty, made.bands, wanted.bands, method)
    weights, resized = _resize(weights, empty, trunk, made.image_size)
    fits = {
        key: weights[key] for key in shapes if key in weights and has_shape(key, weights, shapes)
    }
    head = head_parameters(trunk) if headless else ()
    report = LoadReport(
        source,
        part,
        wanted,
        used=tuple(fits),
        resized=tuple(key for key in resized if key in fits),
        adapted=tuple(key for key in adapted if key in fits),
        method=how,
        unmatched=unmatched,
        missing=tuple(key for key in shapes if key not in weights and key not in head),
        left_over=tuple(key for key in weights if key not in shapes),
        misshapen=tuple(
            f"{key} {tuple(weights[key].shape)} instead of {tuple(shapes[key])}"
            for key in shapes
            if key in weights and key not in fits
        ),
        derived=derived,
    )
    if not report.complete and (not partial or not fits):
        raise PartialLoadError(report)
    own = {key: value.to(types[key], copy=True) for key, value in fits.items()}
    if len(own) == len(shapes):
        model = empty
        load_exactly(model, own, wanted.name)
    else:
        _check_worth(shapes, own, source)
        model = trunk.build()
        model.load_state_dict(own, strict=False)
    renewed = head
    if new_head or wanted.num_classes != made.num_classes:
        if has(model, "quantize"):
            raise ModelError(
                f"{source} is quantized, but a new head would not be.",
                "Start from the unquantized model.",
            )
        assert isinstance(model, Backbone) and wanted.num_classes is not None
        model.reset_head(wanted.num_classes)
        reinstall(model, applied(model))  # the new head gets what the old one had
        renewed = head_parameters(wanted)
    kept = model.state_dict()
    used = tuple(key for key in report.used if key in kept and key not in renewed)
    report = replace(report, reset=renewed, used=used)
    return model.eval(), report


def head_parameters(made: Blueprint) -> tuple[str, ...]:
    """Name the parameters whose shape depends on the number of classes."""
    assert made.num_classes is not None
    few, many = (
        replace(made, num_classes=made.num_classes + more).build_empty().state_dict()
        for more in (0, 1)
    )
    return tuple(key for key in few if key in many and few[key].shape != many[key].shape)


def adapt(
    tensors: dict[str, Tensor], model: Network, source: Bands, target: Bands, method: str
) -> tuple[dict[str, Tensor], list[str], str | None, tuple[int, ...]]:
    """Make the first layers for other bands; return what was done, how, and for which bands it was guessed."""
    done = dict(tensors)
    names = []
    how: str | None = None
    unmatched: tuple[int, ...] = ()
    for name in model.band_parameters:
        axis = model.band_axis(name)
        if name not in done or done[name].ndim <= axis or done[name].shape[axis] != source.count:
            continue  # told as left over
        done[name], made, unmatched = adapt_bands(
            done[name], source, target, method, table=name in model.band_tables, axis=axis
        )
        if made != "same":
            names.append(name)
            how = made
    return done, names, how, unmatched


def _resize(
    tensors: dict[str, Tensor], model: Network, made: Blueprint, image_size: ImageSize | None
) -> tuple[dict[str, Tensor], list[str]]:
    """Resample what depends on the image's size, as the architecture says, and kernels of patches.

    Args:
        tensors: weights for the model's bands and classes.
        model: what they are for.
        made: what it was built from.
        image_size: of the images that the weights were made for.
    """
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    same = image_size == made.image_size
    source = None if same else _built_for(tensors, replace(made, image_size=image_size))
    if source is None and _all_fit(tensors, shapes):
        return tensors, []
    done = dict(tensors)
    resize = getattr(system_module(made.name), "resize", None)
    if resize is not None:
        try:
            done = resize(done, model, source)
        except (RuntimeError, LookupError, ValueError, TypeError):
            done = dict(tensors)  # weights of another model: told as left over
    for key in model.band_parameters:
        if model.band_axis(key) == 1 and key in done and done[key].ndim == len(shapes[key]) == 4:
            rows, columns = shapes[key][2:]
            done[key] = resize_kernel(done[key], (rows, columns))
    changed = [
        key
        for key, value in done.items()
        if key in tensors and value is not tensors[key] and not torch.equal(value, tensors[key])
    ]
    return done, changed


def _built_for(tensors: Mapping[str, Tensor], made: Blueprint) -> Network | None:
    """Return the model, without memory, that weights were made for; None where they were made for another size."""
    model = made.build_empty()
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    return model if _all_fit(tensors, shapes) else None


def _all_fit(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> bool:
    return all(has_shape(key, tensors, shapes) for key in tensors if key in shapes)


def has_shape(key: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> bool:
    """Tell whether a tensor has the shape that a model gives its name."""
    return tensors[key].shape == shapes[key]


def _check_worth(shapes: Mapping[str, torch.Size], own: Mapping[str, Tensor], source: str) -> None:
    """Refuse to build a giant for a few small tensors."""
    total = sum(shape.numel() for shape in shapes.values())
    given = sum(tensor.numel() for tensor in own.values())
    if total > 2**24 and total > 10 * given:
        raise CheckpointError(
            f"{source} fills {given:,} of the model's {total:,} values.",
            "Give the variant it belongs to.",
        )
