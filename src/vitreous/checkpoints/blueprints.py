"""What rebuilds a network, and what it was made for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from vitreous.catalog.arguments import (
    MOST_CLASSES,
    ImageSize,
    checked_image_size,
    whole_number,
)
from vitreous.catalog.registry import create_model, kind_of, sizes_for
from vitreous.errors import ModelError
from vitreous.layers.backbone import Backbone
from vitreous.layers.bands import Bands
from vitreous.layers.restorer import Restorer
from vitreous.methods._apply import applied, reinstall

Network: TypeAlias = Backbone | Restorer


@dataclass(frozen=True)
class Blueprint:
    """What rebuilds a network, and what it was made for.

    Attributes:
        name: the variant.
        model_args: arguments that differ from the variant's.
        bands: the bands that it reads.
        num_classes: classes of its head; None of a restorer.
        image_size: side of its images in pixels, or height and width where they differ; None of a restorer.
        methods: what was applied to it, first to last.
    """

    name: str
    model_args: dict[str, Any]
    bands: Bands
    num_classes: int | None
    image_size: ImageSize | None
    methods: list[dict[str, Any]] = field(default_factory=list)

    def build(self) -> Network:
        """Build the network, with fresh weights or, on the meta device, with none.

        Raises:
            ModelError: it makes no network.
        """
        net = create_model(
            self.name,
            bands=self.bands,
            **sizes_for(self.name, num_classes=self.num_classes, image_size=self.image_size),
            **self.model_args,
        )
        assert isinstance(net, Backbone | Restorer)
        return reinstall(net, self.methods)

    def build_empty(self) -> Network:
        """Build it without memory for its weights, to learn their names and shapes."""
        with torch.device("meta"):
            return self.build()

    @classmethod
    def from_json(cls, value: Any) -> Blueprint:
        """Rebuild a blueprint from a file's header.

        Raises:
            VitreousError, LookupError, TypeError, ValueError: the values are no blueprint.
        """
        name = str(value["name"])
        sizes: dict[str, Any] = {"num_classes": None, "image_size": None}
        for size in kind_of(name).sizes:
            sizes[size] = _READ[size](size, value[size])
        return cls(
            name,
            {str(key): part for key, part in value["model_args"].items()},
            Bands.from_json(value["bands"]),
            **sizes,
            methods=value["methods"],
        )

    @classmethod
    def of(cls, name: str, bands: Bands, num_classes: int, image_size: ImageSize) -> Blueprint:
        """Return that of a variant with those of the sizes that a system of its kind has."""
        sizes = {"num_classes": None, "image_size": None}
        return cls(
            name,
            {},
            bands,
            **sizes | sizes_for(name, num_classes=num_classes, image_size=image_size),
        )


_READ: dict[str, Callable[[str, Any], Any]] = {
    "num_classes": lambda what, value: whole_number(what, value, 0, MOST_CLASSES),
    "image_size": checked_image_size,
}


def blueprint(model: Network, bands: Bands | None = None) -> Blueprint:
    """Return what rebuilds a model that was made by name.

    Raises:
        ModelError: it was not, or it reads other bands than are described.
    """
    if model.variant is None:
        raise ModelError(
            f"This {type(model).__name__} was not created by name, so it could not be rebuilt from a file.",
            "Create it with create_model(NAME, ...).",
        )
    if bands is not None and bands.count != model.bands:
        raise ModelError(
            f"The model reads {model.bands} bands, not {bands.count}.",
            "Describe the bands of this model.",
        )
    return Blueprint(
        model.variant,
        dict(model.arguments),
        bands or model.spectrum or Bands(model.bands),
        getattr(model, "num_classes", None),
        getattr(model, "image_size", None),
        applied(model),
    )


def check_sizes(name: str, num_classes: int | None, image_size: ImageSize | None) -> None:
    """Refuse classes and sizes of what has none.

    Raises:
        ModelError: there is one.
    """
    given = {"num_classes": num_classes, "image_size": image_size}
    extra = [size for size, value in given.items() if value is not None]
    if set(extra) - set(kind_of(name).sizes):
        raise ModelError(
            f"'{name}' restores images of any size and has no classes.",
            f"Omit {' and '.join(extra)}.",
        )


def bands_wanted(bands: int | Bands | None, own: Bands) -> Bands:
    """Return the bands that are asked for: a number, a description, or those of the file."""
    if bands is None:
        return own
    if isinstance(bands, Bands):
        return bands
    return own if bands == own.count else Bands(bands)


def size_wanted(image_size: ImageSize | None, own: Blueprint) -> ImageSize | None:
    """Return the image size that is asked for, or that of the file."""
    if image_size is None:
        return own.image_size
    return checked_image_size(f"image_size of {own.name}", image_size)
