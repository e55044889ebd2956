"""Networks in files of our own, architectures and restorers.

A model file is a safetensors file with a :class:`~vitreous.checkpoints.blueprints.Blueprint` in its header: weights and
description cannot be separated, reading it runs no code, and weights for other bands, classes or image sizes are made on
the way in. What became of every tensor is told (:class:`~vitreous.checkpoints.load_report.LoadReport`); a file that does
not fill the model is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vitreous.catalog.arguments import (
    ImageSize,
)
from vitreous.catalog.results import versions
from vitreous.catalog.tensors import check_finite
from vitreous.checkpoints import hub
from vitreous.checkpoints.assembly import assemble
from vitreous.checkpoints.blueprints import (
    Blueprint,
    Network,
    bands_wanted,
    blueprint,
    check_sizes,
    size_wanted,
)
from vitreous.checkpoints.foreign import PICKLED
from vitreous.checkpoints.headers import DAMAGES, PROVENANCE, SCHEMA, check_counts
from vitreous.checkpoints.load_report import LoadReport
from vitreous.checkpoints.tensors import read_safetensors, save_tensors
from vitreous.data.provenance import Provenance, provenance_to_json
from vitreous.errors import CheckpointError, ModelError, VitreousError
from vitreous.layers.bands import Bands

KIND = "architecture"


def save_model(
    model: Network,
    path: str | Path,
    *,
    bands: Bands | None = None,
    origin: str = "",
    provenance: Provenance | None = None,
    push_to: str | None = None,
) -> Path:
    """Write a bare network, its weights and what rebuilds it, into one safetensors file.

    Args:
        model: made by ``create_model`` or ``load_model``.
        path: the file, ``*.safetensors``.
        bands: what is known of its bands; their number alone where None.
        origin: where the weights come from, in words.
        provenance: the ground that they have learned from; None where nobody knows.
        push_to: also upload it to this repository of the Hugging Face hub, ``user/name``.

    Returns:
        The file.

    Raises:
        ModelError: a model that was not made by name, whose parts were changed since, or that reads other bands.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ModelError(
            f"{path} is not a valid name for a model file.", "Use the suffix .safetensors."
        )
    if push_to is not None:
        hub.check_repository(push_to)
    made = blueprint(model, bands)
    _check_rebuilds(model, made)
    header = {
        "schema": SCHEMA,
        "kind": KIND,
        **asdict(made),
        "origin": origin,
        PROVENANCE: provenance_to_json(provenance),
        "versions": versions(),
    }
    save_tensors(path, model.state_dict(), header)
    if push_to is not None:
        hub.push(path, push_to)
    return path


def load_model(
    path: str | Path,
    bands: int | Bands | None = None,
    num_classes: int | None = None,
    image_size: ImageSize | None = None,
    *,
    method: str = "auto",
    new_head: bool = False,
    partial: bool = False,
) -> tuple[Any, LoadReport]:
    """Load a model file, for the bands, classes and image size that are asked for.

    Args:
        path: what :func:`save_model` or :func:`convert` wrote, or ``hf://user/name`` on the Hugging Face hub.
        bands: the bands that it should read, or how many; those of the file where None.
        num_classes: classes; where they are not as many as the file's, the head is new.
        image_size: side of the images in pixels, or ``(height, width)``; those of the file where None.
        method: how the first layer is made for other bands (:func:`~vitreous.layers.bands.adapt_bands`).
        new_head: replace the head even where the number of classes is the same: they are other classes.
        partial: accept a file that does not fill the model; what is missing is fresh.

    Returns:
        The model (a :class:`~vitreous.layers.backbone.Backbone` or a
        :class:`~vitreous.layers.restorer.Restorer`), in evaluation mode, and the report.

    Raises:
        CheckpointError: a damaged file, one of another kind or with NaN or infinite weights, or
            (:class:`PartialLoadError`) a partial one.
        ModelError: bands that it cannot be adapted to, or classes or an image size that it cannot have.
    """
    file = hub.local(path)
    if file.suffix in PICKLED:
        raise CheckpointError(
            f"{path} is not a vitreous model file (.safetensors).",
            f"Convert published checkpoints first: 'vitreous convert {path} --model NAME', or convert(path, NAME).",
        )
    tensors, header = read_safetensors(file)
    if header is None:
        raise CheckpointError(
            f"{path} was not written by vitreous.",
            f"Convert published checkpoints first: 'vitreous convert {path} --model NAME', or convert(path, NAME).",
        )
    check_finite(tensors, str(path))
    made = _described(header, tensors, file)
    check_sizes(made.name, num_classes, image_size)
    wanted = replace(
        made,
        bands=bands_wanted(bands, made.bands),
        num_classes=made.num_classes if num_classes is None else num_classes,
        image_size=size_wanted(image_size, made),
    )
    return assemble(
        tensors,
        made,
        wanted,
        source=str(path),
        method=method,
        new_head=new_head,
        partial=partial,
    )


def is_model_file(path: str | Path) -> bool:
    """Tell whether a name is that of a model file, here or on the hub, rather than of a run folder."""
    return hub.is_remote(path) or Path(path).suffix == ".safetensors"


def _described(header: Any, tensors: Mapping[str, Tensor], path: Path) -> Blueprint:
    """Read a model file's header, and refuse one that claims more than its tensors can hold."""
    if not isinstance(header, dict) or header.get("kind") != KIND:
        raise CheckpointError(
            f"{path} does not hold a bare architecture.",
            "Load a trained run by its folder (load_run), and other weights through convert.",
        )
    if header.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path} has the format {header.get('schema')}; this version reads {SCHEMA}.",
            "Update vitreous.",
        )
    try:
        made = Blueprint.from_json(header)
        check_counts(made.model_args, dict(tensors))
        made.build_empty()
    except (VitreousError, *DAMAGES) as error:
        raise CheckpointError(
            f"The description in {path} is damaged: {error!r}.", "Restore the file."
        ) from error
    return made


def _check_rebuilds(model: Network, made: Blueprint) -> None:
    """Refuse to write what could not be read."""
    own = {key: value.shape for key, value in model.state_dict().items()}
    again = {key: value.shape for key, value in made.build_empty().state_dict().items()}
    changed = [key for key in {**own, **again} if own.get(key) != again.get(key)]
    if changed:
        raise ModelError(
            f"The model is no longer a plain {made.name}: {', '.join(changed[:3])} differ.",
            "Save it before adding adapters or replacing layers, or keep it as a run.",
        )
