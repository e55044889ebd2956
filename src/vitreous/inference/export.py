"""A trained network as graphs that other runtimes compute: ONNX, OpenVINO or a program of torch.export.

An export is a folder: ``export.json`` says everything that a map needs besides the arithmetic (bands, classes, colours,
settings), and each graph is a file beside it. Preprocessing is part of the graphs: they take raw physical values as
:func:`~vitreous.scenes.cube.read_window` gives them, NaN where a pixel is invalid.

What a network does decides how it is cut into graphs, each with one ``input`` and one ``output``:

- a network of patches is two graphs. ``window`` takes ``(batch, bands, height, width)``, any height and width, and gives
  the features of every pixel, ``(batch, height, width, features)``; ``patches`` takes squares of these,
  ``(batch, size, size, features)``, and gives the probabilities of their middle pixels, ``(batch, classes)``.
- a dense network is one graph, ``tile``: ``(batch, bands, side, side)`` to ``(batch, classes, side, side)``.
- ``single`` makes a network of patches one graph, ``pixel``: the surroundings of pixels,
  ``(batch, bands, context, context)``, to ``(batch, classes)``.
- a restorer is one graph, ``cube`` (``inference/export_restorer.py``).
- a recognizer is one graph, ``image`` (``inference/export_recognizer.py``).

Patches of neighbouring pixels overlap: with two graphs, what they share is computed once per window. Other software
that only wants the class of a pixel is served better by ``single``; maps with it are slower.

A folder is written whole or not at all, and only if its graphs agree with the network on real pixels.
"""

from __future__ import annotations

import copy
import importlib.metadata
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.data.provenance import Provenance, provenance_to_json
from vitreous.errors import ConfigError, ModelError, VitreousError
from vitreous.files import check_room, whole_folder, write_json
from vitreous.inference.dense_classifier import DenseClassifier
from vitreous.inference.export_format import (
    DESCRIPTION,
    LARGEST_GRAPH,
    PACKAGES,
    RUNTIMES,
    SCHEMA,
    SUFFIXES,
    first_line,
    is_export,
    sha256,
)
from vitreous.inference.integers import Quantization, integer_form
from vitreous.inference.patch_classifier import PatchClassifier
from vitreous.inference.pixels import probabilities_at
from vitreous.inference.postprocess import Postprocess
from vitreous.inference.runtimes import Exported, load_exported
from vitreous.layers.answers import joined
from vitreous.methods._apply import applied

Network: TypeAlias = PatchClassifier | DenseClassifier

DYNAMIC = torch.export.Dim.DYNAMIC
PARITY_PIXELS = 256
CELL = 8  # side of the squares in which the pixels for the parity check lie


class Limits(NamedTuple):
    """What an export may differ by from its network.

    Attributes:
        largest: difference of a probability; of a restorer, of a value as a share of its band's range.
        mean: difference of them on average.
        equal: share of pixels with the same class, at least.
        fix: what to do beyond them.
    """

    largest: float
    mean: float
    equal: float
    fix: str


# What two ways of adding up the same float32 products may differ by.
FLOAT_LIMITS = Limits(1e-3, 1e-4, 0.99, "Nothing was written; export to another --format.")
# And integers from their simulation: a value that lies between two steps can fall to either side, and what follows
# differs by a whole step.
INTEGER_LIMITS = Limits(
    0.5,
    0.01,
    0.97,
    "Nothing was written. Processors without VNNI cut sums of two 8-bit products in some kernels: "
    "quantize with bits=[7, 8], or export to another --format.",
)


@dataclass(frozen=True)
class Part:
    """One graph before it is exported.

    Attributes:
        module: computes it; one input, one output.
        example: an input.
        dynamic: the axes of the input whose size is free.
    """

    module: nn.Module
    example: Tensor
    dynamic: tuple[int, ...]


@dataclass(frozen=True)
class Parity:
    """How far an exported network is from the one that was trained, on real pixels or images.

    Attributes:
        runtime: what computed the graphs.
        pixels: how many were compared; of a recognizer, images.
        largest: largest difference of a probability; of a restorer, of a value as a share of its band's range.
        mean: mean difference of them.
        equal: share of pixels or images with the same class, or of the labels of images; None of a restorer.
        counted: what ``pixels`` counts.
    """

    runtime: str
    pixels: int
    largest: float
    mean: float
    equal: float | None = None
    counted: str = "pixels"

    def __str__(self) -> str:
        told = f"{self.runtime} compared with torch on {self.pixels} {self.counted}: "
        apart = f"differ by {self.largest:.1e} at most, {self.mean:.1e} on average"
        if self.equal is None:
            return f"{told}values {apart}, as shares of the range of a band"
        return f"{told}{self.equal:.2%} identical classes, probabilities {apart}"


@dataclass(frozen=True)
class Product:
    """What a map needs to be told about a network.

    Attributes:
        classifier: the network.
        name: of its architecture.
        class_names: names of the classes from 1 on.
        class_colors: their ``#rrggbb``.
        source: SHA-256 of the model file it came from; empty where it came from none.
        provenance: the ground that its weights have learned from; None where nobody knows.
        class_codes: the numbers that stand for the classes in a map; from 1 on when empty.
        task: what it was trained for.
        postprocess: what becomes of its probabilities, behind the graphs.
    """

    classifier: Network
    name: str
    class_names: Sequence[str]
    class_colors: Sequence[str]
    source: str = ""
    provenance: Provenance | None = None
    class_codes: Sequence[int] = ()
    task: str = "classify"
    postprocess: Postprocess | None = None


# -- the graphs -------------------------------------------------------------------------------------------


class WindowGraph(nn.Module):
    """From raw values to what patches are read from, channels last: a patch is then whole runs of memory."""

    def __init__(self, classifier: PatchClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(
        self, window: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch height width features"]:
        """Preprocess, and run the front-end that patches share."""
        return self.classifier.features(self.classifier.preprocess(window)).permute(0, 2, 3, 1)


class PatchGraph(nn.Module):
    """From patches of features to probabilities."""

    def __init__(self, classifier: PatchClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(
        self, patches: Float[Tensor, "batch size size features"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify."""
        normalised = self.classifier.normalise(patches.permute(0, 3, 1, 2))
        return joined(self.classifier.score(normalised)).softmax(-1)


class PixelGraph(nn.Module):
    """From the raw surroundings of pixels to their probabilities."""

    def __init__(self, classifier: PatchClassifier) -> None:
        super().__init__()
        self.window, self.patches = WindowGraph(classifier), PatchGraph(classifier)
        self.reach = classifier.margin - classifier.radius

    def forward(
        self, pixels: Float[Tensor, "batch bands context context"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify the pixel in the middle."""
        inner = slice(self.reach, pixels.shape[2] - self.reach)
        return self.patches(self.window(pixels)[:, inner, inner])


class TileGraph(nn.Module):
    """From raw tiles to the probabilities of all their pixels."""

    def __init__(self, classifier: DenseClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(
        self, tiles: Float[Tensor, "batch bands side side"]
    ) -> Float[Tensor, "batch classes side side"]:
        """Classify."""
        return self.classifier.probabilities(self.classifier.preprocess(tiles))


def parts_of(classifier: Network, *, single: bool = False) -> dict[str, Part]:
    """Cut a network into graphs.

    Args:
        classifier: the network, in evaluation mode.
        single: one graph per pixel rather than two for maps (networks of patches).

    Raises:
        ConfigError: ``single`` was asked for a network that labels whole tiles.
    """
    bands = classifier.preprocess.bands
    if isinstance(classifier, DenseClassifier):
        if single:
            raise ConfigError(
                "This network labels whole tiles; it has no single-pixel graph.",
                "Omit --single.",
            )
        side = classifier.tile_size
        return {"tile": Part(TileGraph(classifier), torch.zeros(2, bands, side, side), (0,))}
    if single:
        side = classifier.receptive_size
        return {"pixel": Part(PixelGraph(classifier), torch.zeros(2, bands, side, side), (0,))}
    # Sides that differ from each other and from everything else, so that no two sizes are taken for one.
    side = classifier.receptive_size
    window = torch.zeros(2, bands, side + 3, side + 8)
    front = WindowGraph(classifier)
    with torch.no_grad():
        features = front(window).shape[-1]
    size = classifier.patch_size
    return {
        "window": Part(front, window, (0, 2, 3)),
        "patches": Part(PatchGraph(classifier), torch.zeros(2, size, size, features), (0,)),
    }


# -- writing ----------------------------------------------------------------------------------------------


def export(
    product: Product,
    folder: str | Path,
    *,
    form: str,
    scene: xr.DataArray,
    pixels: npt.NDArray[np.int64],
    single: bool = False,
) -> Parity:
    """Write an export and check it on real pixels.

    Args:
        product: the network and its classes.
        folder: where; an older export there is replaced.
        form: ``onnx``, ``openvino`` or ``torch``.
        scene: a scene of the network's bands.
        pixels: flat indices of pixels to check on; at most ``PARITY_PIXELS`` of them are used.
        single: see :func:`parts_of`.

    Returns:
        How well the graphs agree with the network.

    Raises:
        ConfigError: an unknown format, a package that is missing, or a folder that holds something else.
        ModelError: the network cannot be written as such graphs, or they do not agree with it; nothing is left.
    """
    check_request(form, folder)
    plain = copy.deepcopy(product.classifier).cpu().eval().requires_grad_(False)
    ready, quantization = integer_form(plain, form)

    def measure(exported: Exported) -> Parity:
        parity = compare(plain, exported.classifier, scene, pixels, RUNTIMES[form])
        check_parity(parity, INTEGER_LIMITS if any(quantization) else FLOAT_LIMITS)
        return parity

    said = _describe(product, single, quantization)
    return write_export(folder, form, parts_of(ready, single=single), said, measure)


def write_export(
    folder: str | Path,
    form: str,
    parts: Mapping[str, Part],
    said: Mapping[str, Any],
    measure: Callable[[Exported], Parity],
) -> Parity:
    """Write a folder of graphs, whole or not at all.

    Args:
        folder: where; an older export there is replaced.
        form: the format.
        parts: the graphs by name.
        said: ``export.json`` but for what follows from the files.
        measure: compares what was written with the network, and refuses it where it does not agree.

    Raises:
        ModelError: see :func:`export`.
    """
    with whole_folder(Path(folder)) as temporary:
        for name, part in parts.items():
            write_graph(part, temporary / name, form, str(said["name"]))
        description = {
            "schema": SCHEMA,
            "format": form,
            **said,
            "files": {
                path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
                for path in sorted(temporary.iterdir())
            },
            "versions": {name: _version(name) for name in ("vitreous", "torch", RUNTIMES[form])},
        }
        write_json(temporary / DESCRIPTION, description)
        parity = measure(load_exported(temporary, trust=True))
        write_json(temporary / DESCRIPTION, {**description, "parity": asdict(parity)})
    return parity


def compare(
    plain: Network,
    exported: Any,
    scene: xr.DataArray,
    pixels: npt.NDArray[np.int64],
    runtime: str,
) -> Parity:
    """Compare two classifiers at some pixels.

    Args:
        plain: the network.
        exported: its export.
        scene: the scene.
        pixels: flat indices; at most ``PARITY_PIXELS`` near one another are used.
        runtime: what computes the export.
    """
    chosen = neighbours(pixels, scene.sizes["x"])
    ours, theirs = (probabilities_at(one, scene, chosen) for one in (plain, exported))
    valid = np.isfinite(ours).all(1)
    difference = np.abs(ours - theirs)[valid]
    if not difference.size:
        raise ModelError(
            "None of the pixels for the parity check has valid data.",
            "Check the scene's no-data value.",
        )
    same = float((ours.argmax(1) == theirs.argmax(1))[valid].mean())
    return parity_of(runtime, int(valid.sum()), difference, same)


def parity_of(
    runtime: str,
    pixels: int,
    difference: npt.NDArray[np.floating[Any]],
    same: float | None = None,
    counted: str = "pixels",
) -> Parity:
    """Sum up differences; NaN counts as infinitely far."""
    apart = np.nan_to_num(difference, nan=np.inf)
    return Parity(
        f"{runtime} {_version(runtime)}",
        pixels,
        float(apart.max()),
        float(apart.mean()),
        same,
        counted,
    )


def check_parity(parity: Parity, limits: Limits) -> None:
    """Refuse an export that does not agree with its network.

    Raises:
        ModelError: it is beyond a limit.
    """
    close = parity.largest <= limits.largest and parity.mean <= limits.mean
    if not close or (parity.equal is not None and parity.equal < limits.equal):
        raise ModelError(
            f"The exported network does not agree with the trained one ({parity}).", limits.fix
        )


def neighbours(
    pixels: npt.NDArray[np.int64], width: int, count: int = PARITY_PIXELS
) -> npt.NDArray[np.int64]:
    """Choose about ``count`` pixels from squares spread over the scene: scattered ones would cost a window each.

    Args:
        pixels: flat indices.
        width: columns of the scene.
        count: how many at most.
    """
    rows, columns = np.divmod(np.sort(pixels), width)
    cells = rows // CELL * (width // CELL + 1) + columns // CELL
    order = np.random.default_rng(0).permutation(np.unique(cells))
    rank = np.empty(order.max(initial=0) + 1, dtype=np.int64)
    rank[order] = np.arange(len(order))
    return np.sort(pixels)[np.argsort(rank[cells], kind="stable")[:count]]


def check_request(form: str, folder: str | Path) -> None:
    """Refuse what cannot be exported, before anything is computed.

    Raises:
        ConfigError: an unknown format, a package that is missing, or a folder that holds something else.
    """
    if form not in RUNTIMES:
        raise ConfigError(f"Unknown export format: {form}.", f"Choose {', '.join(RUNTIMES)}.")
    for package in PACKAGES.get(form, ()):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError as error:
            raise ConfigError(
                f"An export to {form} needs the package {package}.",
                "Install it: pip install 'vitreous[deploy]'.",
            ) from error
    if Path(folder).exists() and not is_export(folder):
        raise ConfigError(f"{folder} exists and is not an export.", "Choose another --out.")


def write_graph(part: Part, stem: Path, form: str, name: str) -> None:
    """Write one graph.

    Raises:
        ModelError: the network does something that the format has no operator for, or is too large.
    """
    writer = {"onnx": _write_onnx, "openvino": _write_openvino, "torch": _write_torch}[form]
    try:
        with _quiet():
            writer(part, stem)
    except (OSError, VitreousError):  # of the disk, not of the format
        raise
    except Exception as error:  # exporters raise whatever stopped them
        raise ModelError(
            f"{name} cannot be written as {form}: {first_line(error)}",
            "Export it to another --format; nothing was written.",
        ) from error
    size = sum(stem.with_suffix(suffix).stat().st_size for suffix in SUFFIXES[form])
    if size > LARGEST_GRAPH:
        raise ModelError(
            f"{name} takes {size / 2**30:.1f} GiB, more than a graph may hold.",
            "Export a smaller model.",
        )


def _write_onnx(part: Part, stem: Path) -> None:
    shapes = dict.fromkeys(part.dynamic, DYNAMIC)
    program = torch.onnx.export(
        part.module.eval(),
        (part.example,),
        dynamo=True,
        dynamic_shapes=(shapes,),
        input_names=["input"],
        output_names=["output"],
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where in whose files the code stands
    program.save(stem.with_suffix(".onnx"), external_data=False)


def _write_openvino(part: Part, stem: Path) -> None:
    import openvino

    _write_onnx(part, stem)
    intermediate = stem.with_suffix(".onnx")
    model = openvino.convert_model(intermediate)
    try:
        openvino.save_model(model, stem.with_suffix(".xml"), compress_to_fp16=False)
    except RuntimeError as error:  # it was converted: what is left to fail is the disk
        raise VitreousError(
            f"{stem.with_suffix('.xml')} was not written: OpenVINO says '{first_line(error)}'.",
            "Check the free space and the file size that the disk allows.",
        ) from error
    check_room(stem.parent)
    intermediate.unlink()


def _write_torch(part: Part, stem: Path) -> None:
    shapes = dict.fromkeys(part.dynamic, DYNAMIC)
    with torch.no_grad():
        program = torch.export.export(part.module.eval(), (part.example,), dynamic_shapes=(shapes,))
        program = program.run_decompositions({})
    program._example_inputs = None  # they would be pickled along
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # where in whose files the code stands
    torch.export.save(program, stem.with_suffix(".pt2"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' progress and hints to their developers off the user's screen."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _describe(product: Product, single: bool, quantization: Quantization) -> dict[str, Any]:
    """Return what ``export.json`` says of a classifier, whatever its files are."""
    classifier = product.classifier
    settings = classifier.settings()
    if isinstance(classifier, PatchClassifier):
        settings["margin"] = classifier.margin
    return {
        "task": product.task,
        "kind": graph_kind(settings, single),
        "name": product.name,
        "contract": classifier.contract.to_json(),
        "class_names": list(product.class_names),
        "class_colors": list(product.class_colors),
        "class_codes": list(product.class_codes) or list(range(1, len(product.class_names) + 1)),
        "settings": settings,
        "methods": applied(classifier.net),
        "quantization": quantization._asdict(),
        "source": product.source,
        "provenance": provenance_to_json(product.provenance),
        "postprocess": None if product.postprocess is None else product.postprocess.to_json(),
    }


def graph_kind(settings: Mapping[str, Any], single: bool) -> str:
    """Return ``tiles``, ``pixels`` or ``patches``: what the graphs of an export take."""
    if settings["mode"] == "dense":
        return "tiles"
    return "pixels" if single else "patches"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "?"
