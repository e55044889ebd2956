"""Networks in files, architectures and restorers: our own, and what others published.

It lives in ``tasks`` because it needs the catalogue, the layers and the checkpoint format, and nothing below needs it.
A model file is a safetensors file with a :class:`Blueprint` in its header: weights and description cannot be separated,
reading it runs no code, and weights for other bands, classes or image sizes are made on the way in. What became of
every tensor is told (:class:`LoadReport`); a file that does not fill the model is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vitreous.catalog.arguments import (
    MOST_CLASSES,
    MOST_IMAGE_SIZE,
    ImageSize,
    checked_image_size,
    whole_number,
)
from vitreous.catalog.registry import card, create_model, kind_of, sizes_for, system_module
from vitreous.catalog.results import versions
from vitreous.catalog.tensors import DERIVED, check_finite
from vitreous.checkpoints import hub
from vitreous.checkpoints.foreign import PICKLED, Foreign, read_foreign
from vitreous.checkpoints.headers import PROVENANCE, check_counts
from vitreous.checkpoints.layouts import Layout, recognise
from vitreous.checkpoints.tensors import load_exactly, read_safetensors, save_tensors
from vitreous.data.provenance import Provenance, provenance_to_json
from vitreous.errors import CheckpointError, ModelError, VitreousError
from vitreous.layers.backbone import Backbone
from vitreous.layers.bands import Bands, adapt_bands, resize_kernel
from vitreous.layers.restorer import Restorer
from vitreous.layers.sizes import as_size
from vitreous.methods._apply import applied, has, reinstall

Network: TypeAlias = Backbone | Restorer

SCHEMA = 1
KIND = "architecture"
# Sides of the images that published weights were trained on, the usual one first.
PUBLISHED_SIZES = (224, 384, 256, 240, 288, 336, 448, 512, 518)


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


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor. Names are the model's own.

    Attributes:
        source: the file.
        part: where in the file its weights were (``model_ema``, ...); empty where they were all of it.
        made: what the model is now.
        used: filled from the file, the resized and adapted ones among them.
        resized: resampled for another image size.
        adapted: made for other bands.
        method: how (see :func:`~vitreous.layers.bands.adapt_bands`); None where the bands are the same.
        unmatched: bands of the file that no band of the model resembles.
        reset: of a new head.
        missing: of the model, not in the file: fresh.
        left_over: in the file, without a place in the model.
        misshapen: in both, but of another shape, in words.
        derived: in the file, but following from the model's sizes.
        unread: of what is left over, what does not belong to the network: a decoder of its pre-training, or what stood
            beside the network in its wrapper (a counter of steps, a loss). A load is complete without it.
        rewritten: names in the file of tensors that were joined, split or turned to become the model's.
        layout: whose network in whose names the file held, e.g. ``timm's Swin``; empty where that is unknown.
        parameters: of the network in the file.
        classes: that it told apart; None without a head.
        read: arguments that the variant leaves open and the weights decided.
    """

    source: str
    part: str
    made: Blueprint
    used: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    method: str | None = None
    unmatched: tuple[int, ...] = ()
    reset: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()
    layout: str = ""
    parameters: int = 0
    classes: int | None = None
    read: dict[str, Any] = field(default_factory=dict)

    @property
    def found(self) -> str:
        """What was in the file, in words: ``timm's Swin, 28.3 M parameters, 1000 classes``."""
        if self.made.num_classes is None:
            return _sized(self.layout, self.parameters)
        classes = "no head" if self.classes is None else f"{self.classes} classes"
        return f"{_sized(self.layout, self.parameters)}, {classes}"

    @property
    def complete(self) -> bool:
        """Whether every tensor found its place and every place its tensor."""
        return not any(self.complaints.values())

    @property
    def complaints(self) -> dict[str, tuple[str, ...]]:
        """What keeps a load from being complete."""
        return {
            "missing": self.missing,
            "unexpected": tuple(name for name in self.left_over if name not in self.unread),
            "with a different shape": self.misshapen,
        }

    @property
    def bands(self) -> Bands:
        """The bands that the model reads now."""
        return self.made.bands

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    def __str__(self) -> str:
        """Say in one line what was done."""
        parts = [f"{len(self.used)} tensors of {self.source}"]
        if self.method is not None:
            parts.append(f"bands adapted by '{self.method}'")
        if self.unmatched:
            parts.append(f"{len(self.unmatched)} bands without a counterpart")
        if self.resized:
            parts.append(f"{len(self.resized)} resized")
        if self.reset:
            parts.append(f"new head with {self.made.num_classes} classes")
        elif self.made.num_classes == 0:
            parts.append("without a head")
        parts += [f"{len(names)} {what}" for what, names in self.complaints.items() if names]
        return ", ".join(parts)


def _sized(layout: str, parameters: int) -> str:
    size = f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else f"{parameters:,}"
    return f"{layout or 'an unknown layout'}, {size} parameters"


class PartialLoadError(CheckpointError):
    """Weights that do not fill their model; ``report`` says which, ``advice`` what else they may be."""

    def __init__(self, report: LoadReport, advice: str = "") -> None:
        complaints = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in report.complaints.items()
            if names
        ]
        super().__init__(
            f"The weights in {report.source} do not fit {report.made.name}: {'; '.join(complaints)}. "
            "Nothing was loaded.",
            advice
            or "Give the variant, arguments and image size they belong to, or allow a partial load.",
        )
        self.report = report


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
    _check_sizes(made.name, num_classes, image_size)
    wanted = replace(
        made,
        bands=_bands_wanted(bands, made.bands),
        num_classes=made.num_classes if num_classes is None else num_classes,
        image_size=_size_wanted(image_size, made),
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
    _check_sizes(name, num_classes, image_size)
    file = hub.local(path)
    foreign = read_foreign(file)
    if foreign.header is not None:
        raise CheckpointError(f"{path} is already a vitreous file.", "Use load_model.")
    check_finite(foreign.tensors, str(path))
    count = bands.count if isinstance(bands, Bands) else bands
    classes = 2 if num_classes is None else num_classes
    probe = Blueprint.of(name, Bands(count or 3), classes, PUBLISHED_SIZES[0])
    probe = replace(
        probe, model_args=dict(model_args or {}), image_size=_size_wanted(image_size, probe)
    )
    tensors, probe, told = _identified(foreign, probe, str(path), partial)
    if image_size is None and probe.image_size is not None:
        probe = _usual_size(tensors, probe)
    found = _count_bands(tensors, probe) or count
    if found is None:
        raise _no_bands(probe, str(path), _sized(told["layout"], _count_parameters(tensors)))
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
        bands=_bands_wanted(bands, own),
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
    weights, adapted, how, unmatched = _adapt(weights, empty, made.bands, wanted.bands, method)
    weights, resized = _resize(weights, empty, trunk, made.image_size)
    fits = {key: weights[key] for key in shapes if key in weights and _fits(key, weights, shapes)}
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


def is_model_file(path: str | Path) -> bool:
    """Tell whether a name is that of a model file, here or on the hub, rather than of a run folder."""
    return hub.is_remote(path) or Path(path).suffix == ".safetensors"


# -- steps --------------------------------------------------------------------------------------------------


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
    # Building from a damaged description can fail in any of these ways.
    except (
        VitreousError,
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        ArithmeticError,
        RuntimeError,
    ) as error:
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


def _bands_wanted(bands: int | Bands | None, own: Bands) -> Bands:
    if bands is None:
        return own
    if isinstance(bands, Bands):
        return bands
    return own if bands == own.count else Bands(bands)


def _check_sizes(name: str, num_classes: int | None, image_size: ImageSize | None) -> None:
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


def _size_wanted(image_size: ImageSize | None, own: Blueprint) -> ImageSize | None:
    if image_size is None:
        return own.image_size
    return checked_image_size(f"image_size of {own.name}", image_size)


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
    """Set aside what does not belong to the network: pre-training's own, and what stood beside it in a wrapper."""
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
    fits = {key for key in shapes if key in tensors and _fits(key, tensors, shapes)}
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


def _count_bands(tensors: Mapping[str, Tensor], probe: Blueprint) -> int | None:
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


def _adapt(
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
    return all(_fits(key, tensors, shapes) for key in tensors if key in shapes)


def _fits(key: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> bool:
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
