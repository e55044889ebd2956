"""Exported networks as scene classifiers, restorers and recognizers, computed by ONNX Runtime, OpenVINO or torch.

Files may come from anywhere, so they are looked at before a runtime sees them: names and sizes, hashes, operators of the
standard alone, no data in further files. A program of torch.export is code by its makers' own words; it is only run for
those who say that they trust it.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from vitreous.data.contract import BandContract
from vitreous.data.regions import gather_patches, patch_index
from vitreous.errors import CheckpointError, ConfigError, ModelError
from vitreous.files import checked, read_json
from vitreous.inference.dense_classifier import OVERLAP, blend_tiles
from vitreous.inference.descriptions import (
    ClassifierExport,
    ExportDescription,
    ExportedRecognizerSettings,
    RecognizerExport,
    RestorerExport,
)
from vitreous.inference.export_format import (
    DESCRIPTION,
    GRAPHS,
    LARGEST_GRAPH,
    READS,
    RUNTIMES,
    SCHEMA,
    file_names,
    first_line,
    is_export,
)
from vitreous.inference.postprocess import Postprocess, read_postprocess
from vitreous.inference.recognizer import ImageClassifier
from vitreous.inference.restore import check_restored

Array: TypeAlias = npt.NDArray[np.float32]
Compute: TypeAlias = Callable[[Array], Array]

CHUNK = 128  # patches per call: what stays in cache; measured, a fifth faster than 512
PIXEL_VALUES = 2**24  # values of the raw surroundings that are cut out at once (64 MiB)


DESCRIPTIONS: dict[str, type[ExportDescription]] = {
    "cubes": RestorerExport,
    "images": RecognizerExport,
}  # by kind; all others are of classifiers


@dataclass(frozen=True)
class Exported:
    """An export that was loaded.

    Attributes:
        path: its folder.
        product: the classifier, which fulfils the scene classifier's contract, the restorer or the recognizer.
        class_names: names of the classes from 1 on; none of a restorer.
        class_colors: their ``#rrggbb``; none of a recognizer.
        class_codes: the numbers that stand for them in a map; none of a recognizer.
        name: of the architecture.
        runtime: what computes it.
        description: all of ``export.json``.
        postprocess: what becomes of a classifier's probabilities; None of other products and older exports.
    """

    path: Path
    product: ExportedClassifier | ExportedRestorer | ExportedRecognizer
    class_names: list[str]
    class_colors: list[str]
    class_codes: list[int]
    name: str
    runtime: str
    description: dict[str, Any]
    postprocess: Postprocess | None = None

    @property
    def classifier(self) -> ExportedClassifier:
        """The classifier.

        Raises:
            ModelError: it is the export of something else.
        """
        if not isinstance(self.product, ExportedClassifier):
            raise self._other()
        return self.product

    @property
    def restorer(self) -> ExportedRestorer:
        """The restorer.

        Raises:
            ModelError: it is the export of something else.
        """
        if not isinstance(self.product, ExportedRestorer):
            raise self._other()
        return self.product

    @property
    def recognizer(self) -> ExportedRecognizer:
        """The recognizer.

        Raises:
            ModelError: it is the export of something else.
        """
        if not isinstance(self.product, ExportedRecognizer):
            raise self._other()
        return self.product

    def _other(self) -> ModelError:
        role = self.product.role
        return ModelError(f"{self.path} is the export of a {role}.", f"Use its {role}.")


class Graph:
    """One graph and what computes it. It can be sent to other processes, which make a session of their own.

    Args:
        files: its files' contents.
        form: ``onnx``, ``openvino`` or ``torch``.
        runtime: ``onnxruntime``, ``openvino`` or ``torch``.
        threads: threads of the processor; as many as torch uses where 0.
    """

    def __init__(self, files: list[bytes], form: str, runtime: str, threads: int = 0) -> None:
        self.files, self.form, self.runtime, self.threads = files, form, runtime, threads
        self._compute: Compute | None = None
        self._lock = threading.Lock()

    def __call__(self, values: Array) -> Array:
        """Compute the graph.

        Raises:
            ModelError: it does not take these values, or cannot be computed.
        """
        compute = self.prepared()
        try:
            return compute(values)
        except Exception as error:  # each runtime has errors of its own
            raise ModelError(
                f"{self.runtime} cannot compute the exported graph: {first_line(error)}",
                "Export the run again.",
            ) from error

    def prepared(self) -> Compute:
        """Return the session, made at the first call.

        Raises:
            ConfigError: the runtime is not installed.
            CheckpointError: it cannot read the graph.
        """
        with self._lock:
            if self._compute is None:
                open_ = {
                    "onnxruntime": _onnxruntime,
                    "openvino": _openvino,
                    "torch": _torch_program,
                }[self.runtime]
                try:
                    self._compute = open_(self.files, self.threads or torch.get_num_threads())
                except ImportError as error:
                    raise ConfigError(
                        f"The runtime {self.runtime} is not installed.",
                        "Install it: pip install 'vitreous[deploy]'.",
                    ) from error
                except Exception as error:
                    raise CheckpointError(
                        f"{self.runtime} cannot read the exported graph: {first_line(error)}",
                        "Export the run again.",
                    ) from error
            return self._compute

    def __getstate__(self) -> dict[str, Any]:
        """Leave the session out: it belongs to a process."""
        return {
            "files": self.files,
            "form": self.form,
            "runtime": self.runtime,
            "threads": self.threads,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


# -- scene classifiers ------------------------------------------------------------------------------------


class ExportedClassifier:
    """What all exports share.

    Args:
        graphs: by name.
        contract: the bands and unit that they take.
        num_classes: number of classes.
        settings: of the classifier that was exported.
    """

    role = "classifier"

    def __init__(
        self,
        graphs: Mapping[str, Graph],
        contract: BandContract,
        num_classes: int,
        settings: Mapping[str, Any],
    ) -> None:
        self.graphs, self.contract, self.num_classes = dict(graphs), contract, num_classes
        self.padding = str(settings["padding"])
        self.margin = 0

    def classify(self, window: Array) -> Array:
        """Classify every pixel of a window of raw physical values.

        Args:
            window: ``(bands, height + 2 margin, width + 2 margin)``, NaN where invalid.

        Returns:
            ``(classes, height, width)`` probabilities; zeros where the pixel itself is invalid.
        """
        height, width = (side - 2 * self.margin for side in window.shape[1:])
        inner = slice(self.margin, -self.margin or None)
        valid = np.asarray(np.isfinite(window[:, inner, inner]).all(0))
        output = np.zeros((self.num_classes, height, width), dtype=np.float32)
        if valid.any():
            self._fill(output, window, valid)
        return output

    def check(self, file: Path) -> None:
        """Compute one pixel or tile, to see that the graphs fit what is said of them.

        Raises:
            ModelError: they do not take the bands and sizes.
            CheckpointError: they tell another number of classes apart than ``file`` names.
        """
        found = self._smallest(len(self.contract.used)).shape[1]
        if found != self.num_classes:
            raise CheckpointError(
                f"{file} is damaged: it names {self.num_classes} classes, and its graphs tell {found} apart.",
                "Export the run again.",
            )

    def _smallest(self, bands: int) -> Array:
        """Return the probabilities of the least that can be computed, ``(1, classes, ...)``."""
        raise NotImplementedError

    def _fill(self, output: Array, window: Array, valid: npt.NDArray[np.bool_]) -> None:
        """Write the probabilities of valid pixels into ``output``."""
        raise NotImplementedError


class ExportedPatches(ExportedClassifier):
    """Computes the features of a window once, and reads every pixel's patch from them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        settings = arguments[-1]
        self.margin, self.radius = int(settings["margin"]), int(settings["patch_size"]) // 2

    def _smallest(self, bands: int) -> Array:
        side = 2 * self.margin + 1
        image = self._image(np.zeros((bands, side, side), dtype=np.float32))
        middle = torch.tensor([self.margin])
        return self._patches(image, middle, middle)

    def _image(self, window: Array) -> Float[Tensor, "1 features h w"]:
        features = torch.from_numpy(self.graphs["window"](window[None]))
        # A view: patches come out channels last, as the graph takes them.
        return features.permute(0, 3, 1, 2)

    def _fill(self, output: Array, window: Array, valid: npt.NDArray[np.bool_]) -> None:
        image = self._image(window)
        rows, columns = (torch.from_numpy(at) for at in np.nonzero(valid))
        found = [
            self._patches(image, r + self.margin, c + self.margin)
            for r, c in zip(rows.split(CHUNK), columns.split(CHUNK), strict=True)
        ]
        output[:, valid] = np.concatenate(found).T

    def _patches(
        self, image: Float[Tensor, "1 features h w"], rows: Tensor, columns: Tensor
    ) -> Array:
        index = patch_index(rows, columns, image.shape[3], self.radius)
        return self.graphs["patches"](gather_patches(image, index).permute(0, 2, 3, 1).numpy())


class ExportedPixels(ExportedClassifier):
    """Cuts the raw surroundings of every pixel out of a window."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.margin = int(arguments[-1]["margin"])

    def _smallest(self, bands: int) -> Array:
        side = 2 * self.margin + 1
        return self.graphs["pixel"](np.zeros((1, bands, side, side), dtype=np.float32))

    def _fill(self, output: Array, window: Array, valid: npt.NDArray[np.bool_]) -> None:
        side = 2 * self.margin + 1
        around = np.lib.stride_tricks.sliding_window_view(window, (side, side), axis=(1, 2))
        at_once = max(1, min(CHUNK, PIXEL_VALUES // (len(window) * side**2)))
        rows, columns = np.nonzero(valid)
        for first in range(0, len(rows), at_once):
            r, c = rows[first : first + at_once], columns[first : first + at_once]
            pixels = np.ascontiguousarray(around[:, r, c].swapaxes(0, 1))
            output[:, r, c] = self.graphs["pixel"](pixels).T


class ExportedTiles(ExportedClassifier):
    """Labels tiles and blends them, as :class:`~vitreous.inference.dense_classifier.DenseClassifier` does."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.tile_size = int(arguments[-1]["tile_size"])
        self.margin = self.tile_size - 1
        self.step = self.tile_size - self.tile_size // OVERLAP

    def _smallest(self, bands: int) -> Array:
        shape = (1, bands, self.tile_size, self.tile_size)
        return self.graphs["tile"](np.zeros(shape, dtype=np.float32))

    def _fill(self, output: Array, window: Array, valid: npt.NDArray[np.bool_]) -> None:
        raw = torch.from_numpy(np.ascontiguousarray(window))[None]
        blended = blend_tiles(
            self._probabilities, raw, torch.from_numpy(valid), self.num_classes, self.tile_size
        )
        inner = slice(self.margin, -self.margin or None)
        output[:, valid] = blended[:, inner, inner].numpy()[:, valid]

    def _probabilities(
        self, tiles: Float[Tensor, "tiles bands size size"]
    ) -> Float[Tensor, "tiles classes size size"]:
        return torch.from_numpy(self.graphs["tile"](tiles.numpy()))


CLASSIFIERS = {"patches": ExportedPatches, "pixels": ExportedPixels, "tiles": ExportedTiles}


# -- restorers --------------------------------------------------------------------------------------------


class ExportedRestorer:
    """Restores tiles of a scene, as :class:`~vitreous.inference.restore.SceneRestorer` does, of its own bands only.

    Args:
        graphs: the one that there is.
        contract: the bands and unit that it takes.
        tile_size: side of its tiles.
        scale: how many times finer its products are.
    """

    role = "restorer"

    def __init__(
        self, graphs: Mapping[str, Graph], contract: BandContract, tile_size: int, scale: int
    ) -> None:
        (self.graph,) = graphs.values()
        self.contract, self.tile_size, self.scale = contract, tile_size, scale

    def fitted(self, scene: xr.DataArray) -> tuple[ExportedRestorer, npt.NDArray[np.int64]]:
        """Return itself, and the bands that it takes of a scene.

        Raises:
            ModelError: a band is missing, or the unit differs.
        """
        return self, self.contract.select(scene)

    def restore_tiles(
        self, tiles: Float[Tensor, "tiles bands size size"]
    ) -> Float[Tensor, "tiles bands size*scale size*scale"]:
        """Restore tiles of raw physical values, NaN where invalid.

        Raises:
            ModelError: the graph gives no numbers.
        """
        return check_restored(torch.from_numpy(self.graph(tiles.contiguous().numpy())))

    def check(self, file: Path) -> None:
        """Restore one tile, to see that the graph fits what is said of it.

        Raises:
            ModelError: it does not take the bands and size.
            CheckpointError: what it gives has another size than ``file`` says.
        """
        bands, side = len(self.contract.used), self.tile_size
        found = self.graph(np.zeros((1, bands, side, side), dtype=np.float32)).shape
        if found != (1, bands, side * self.scale, side * self.scale):
            raise CheckpointError(
                f"{file} is damaged: its graph makes {found} of a tile of {side} pixels with {bands} bands, "
                f"{self.scale} times finer as it says.",
                "Export the run again.",
            )


# -- recognizers ------------------------------------------------------------------------------------------


class ExportedRecognizer(ImageClassifier):
    """Classifies whole images, as :class:`~vitreous.inference.recognizer.Recognizer` does.

    Args:
        graphs: the one that there is.
        contract: the bands and unit that it takes.
        class_names: in the order of the probabilities.
        settings: of the recognizer that was exported.
    """

    role = "recognizer"

    def __init__(
        self,
        graphs: Mapping[str, Graph],
        contract: BandContract,
        class_names: list[str],
        settings: ExportedRecognizerSettings,
    ) -> None:
        (self.graph,) = graphs.values()
        self.contract, self.class_names, self.several = contract, class_names, settings.several
        self.size = (settings.size[0], settings.size[1])
        self.settings = settings

    @property
    def hints(self) -> dict[str, Any]:
        """Reader options that the training images were opened with."""
        return self.settings.hints

    @property
    def fill(self) -> Float[Tensor, "bands"]:
        """What invalid pixels are given: the training images' mean."""
        return torch.tensor(self.settings.fill)

    def probabilities(
        self, images: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the classes' probabilities: of one among them, or of each by itself.

        Raises:
            ModelError: the graph cannot be computed.
        """
        return torch.from_numpy(self.graph(images.contiguous().numpy()))

    def check(self, file: Path) -> None:
        """Classify one image, to see that the graph fits what is said of it.

        Raises:
            ModelError: it does not take the bands and size.
            CheckpointError: ``file`` names another number of classes, or of bands that invalid pixels are given.
        """
        bands, classes = self.contract.bands, len(self.class_names)
        if len(self.fill) != bands:
            raise CheckpointError(
                f"{file} is damaged: it fills {len(self.fill)} of {bands} bands.",
                "Export the run again.",
            )
        found = self.graph(np.zeros((1, bands, *self.size), dtype=np.float32)).shape
        if found != (1, classes):
            raise CheckpointError(
                f"{file} is damaged: it names {classes} classes, and its graph makes {found} of an image.",
                "Export the run again.",
            )


# -- loading ----------------------------------------------------------------------------------------------


def load_exported(
    path: str | Path, runtime: str | None = None, *, threads: int = 0, trust: bool = False
) -> Exported:
    """Load an export.

    Args:
        path: its folder.
        runtime: what computes it; what its format was made for when None.
        threads: threads of the processor; as many as torch uses where 0.
        trust: also run a program of torch.export, which can be made to do anything.

    Raises:
        CheckpointError: the folder is no export, damaged, or holds what no export of ours does.
        ConfigError: the runtime cannot read it, is not installed, or the file must be trusted first.
    """
    path = Path(path)
    if not is_export(path):
        raise CheckpointError(
            f"{path} is not an export: it has no {DESCRIPTION}.",
            "Create one with 'vitreous export'.",
        )
    description = read_json(path / DESCRIPTION)
    if isinstance(description, dict) and description.get("schema", SCHEMA) != SCHEMA:
        raise CheckpointError(
            f"The export has the format {description['schema']}; this version reads {SCHEMA}.",
            "Update vitreous.",
        )
    kind = description.get("kind") if isinstance(description, dict) else None
    said = checked(
        DESCRIPTIONS.get(str(kind), ClassifierExport),
        description,
        path / DESCRIPTION,
        "Export the run again.",
    )
    contract = BandContract.from_json(said.contract)
    chosen = _choose_runtime(said.format, runtime)
    if said.format == "torch" and not trust:
        raise ConfigError(
            f"{path} is a torch.export program, which can run arbitrary code.",
            "Add --trust if you trust it, or export to onnx or openvino.",
        )
    graphs = {
        graph: Graph(_read_files(path, graph, said), said.format, chosen, threads)
        for graph in GRAPHS[said.kind]
    }
    product: ExportedClassifier | ExportedRestorer | ExportedRecognizer
    names: list[str] = []
    colors: list[str] = []
    codes: list[int] = []
    after = None
    if isinstance(said, ClassifierExport):
        fix = "Export the run again."
        after = read_postprocess(said.postprocess, contract, path / DESCRIPTION, fix)
        names, colors = said.class_names, said.class_colors
        codes = said.class_codes or list(range(1, len(names) + 1))
        settings = said.settings.model_dump()
        product = CLASSIFIERS[said.kind](graphs, contract, len(names), settings)
    elif isinstance(said, RecognizerExport):
        names = said.class_names
        product = ExportedRecognizer(graphs, contract, names, said.settings)
    else:
        assert isinstance(said, RestorerExport)
        size = said.settings.tile_size
        product = ExportedRestorer(graphs, contract, size, said.settings.scale)
    for loaded in graphs.values():
        loaded.prepared()
    product.check(path / DESCRIPTION)
    return Exported(path, product, names, colors, codes, said.name, chosen, description, after)


def _choose_runtime(form: str, runtime: str | None) -> str:
    chosen = runtime or RUNTIMES[form]
    if chosen not in READS:
        raise ConfigError(f"Unknown runtime: {chosen}.", f"Choose {', '.join(READS)}.")
    if form not in READS[chosen]:
        able = [name for name, forms in READS.items() if form in forms]
        raise ConfigError(
            f"{chosen} does not read exports of the format {form}.",
            f"Use --runtime {' or '.join(able)}, or export to {READS[chosen][0]}.",
        )
    return chosen


def _read_files(path: Path, graph: str, said: ExportDescription) -> list[bytes]:
    """Read the files of a graph, whose names are fixed, and check what they hold.

    Raises:
        CheckpointError: one is missing, too large, damaged, or holds what it should not.
    """
    files = []
    form = said.format
    for name in file_names(graph, form):
        file = path / name
        if name not in said.files:
            raise CheckpointError(
                f"{path / DESCRIPTION} is damaged: it does not list {name}.",
                "Export the run again.",
            )
        if not file.is_file():
            raise CheckpointError(f"{file} is missing.", "Export the run again.")
        if file.stat().st_size > LARGEST_GRAPH:
            raise CheckpointError(
                f"{file} is too large for an exported graph.", "Export the run again."
            )
        contents = file.read_bytes()
        if hashlib.sha256(contents).hexdigest() != said.files[name].sha256:
            raise CheckpointError(
                f"{file} is not the file that {DESCRIPTION} describes.",
                "It was damaged or replaced: export the run again.",
            )
        files.append(contents)
    if form == "onnx":
        check_onnx(files[0], path / file_names(graph, form)[0])
    elif form == "openvino":
        check_openvino(files[0], path / file_names(graph, form)[0])
    return files


def check_onnx(contents: bytes, file: Path) -> None:
    """Refuse a model with operators that are not ONNX's own, or with data in other files.

    Raises:
        CheckpointError: it has such, or is no ONNX model.
        ConfigError: the package onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ConfigError(
            "Reading an ONNX export needs the package onnx.",
            "Install it: pip install 'vitreous[deploy]'.",
        ) from error
    try:
        model = onnx.load_model_from_string(contents)
    except Exception as error:  # protobuf's own
        raise CheckpointError(
            f"{file} is not an ONNX model: {first_line(error)}", "Export the run again."
        ) from error
    foreign = {node.domain for node in _onnx_nodes(model.graph)} - {"", "ai.onnx"}
    if foreign or model.functions:
        raise CheckpointError(
            f"{file} uses operators that are not ONNX's own.",
            "Only exports made by vitreous are supported.",
        )
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _onnx_tensors(model)):
        raise CheckpointError(
            f"{file} keeps its weights in other files.",
            "Only exports made by vitreous are supported.",
        )


def check_openvino(contents: bytes, file: Path) -> None:
    """Refuse a model with operators that are not OpenVINO's own, or with entities of XML.

    Raises:
        CheckpointError: it has such.
    """
    if re.search(rb"<!(DOCTYPE|ENTITY)", contents):
        raise CheckpointError(
            f"{file} declares XML entities.", "Only exports made by vitreous are supported."
        )
    versions = set(re.findall(rb"<layer\b[^>]*\bversion=\"([^\"]*)\"", contents))
    layers = len(re.findall(rb"<layer\b", contents))
    named = len(re.findall(rb"<layer\b[^>]*\bversion=\"opset[0-9]+\"", contents))
    if not layers or layers != named:
        raise CheckpointError(
            f"{file} uses operators that are not OpenVINO's own "
            f"({', '.join(sorted(v.decode(errors='replace') for v in versions)) or 'none'}).",
            "Only exports made by vitreous are supported.",
        )


def _onnx_nodes(graph: Any) -> list[Any]:
    """Return all nodes of a graph and of the graphs in their attributes."""
    nodes, waiting = [], [graph]
    while waiting:
        for node in waiting.pop().node:
            nodes.append(node)
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs
    return nodes


def _onnx_tensors(model: Any) -> list[Any]:
    """Return all tensors of a model, those in attributes and subgraphs too."""
    tensors = [*model.graph.initializer]
    sparse = [*model.graph.sparse_initializer]
    for node in _onnx_nodes(model.graph):
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors, *attribute.g.initializer]
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
            sparse += attribute.g.sparse_initializer
            for graph in attribute.graphs:
                tensors += graph.initializer
                sparse += graph.sparse_initializer
    return tensors + [part for one in sparse for part in (one.values, one.indices)]


# -- sessions ---------------------------------------------------------------------------------------------


def _onnxruntime(files: list[bytes], threads: int) -> Compute:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(files[0], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def compute(values: Array) -> Array:
        found: Array = session.run(None, {name: values})[0]
        return found

    return compute


def _openvino(files: list[bytes], threads: int) -> Compute:
    request = openvino_model(files, threads).create_infer_request()
    lock = (
        threading.Lock()
    )  # a request serves one thread at a time, and more were seen to wait for one another

    def compute(values: Array) -> Array:
        with lock:
            # A copy, because the request writes its next result into the same memory.
            return np.array(request.infer([np.ascontiguousarray(values)])[0])

    return compute


def openvino_model(files: list[bytes], threads: int) -> Any:
    """Compile a graph (ONNX, or OpenVINO's own format) for the processor, in float32 and where quantized in int8."""
    core = _openvino_core()
    model = core.read_model(files[0], *(files[1:] or [b""]))
    return core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )


_cores: dict[int, Any] = {}
_making_core = threading.Lock()


def _openvino_core() -> Any:
    """Return this process's OpenVINO, which is made once and stays.

    Each one gives the thread that first uses it another stack for signals, and takes it back when it goes. Of two that
    go in the order they came, the second puts the first one's stack back, which is no longer there: the process would
    die at the next signal, such as the end of a child process. A forked process makes its own.
    """
    import openvino

    with _making_core:
        if os.getpid() not in _cores:
            _cores[os.getpid()] = openvino.Core()
        return _cores[os.getpid()]


def _torch_program(files: list[bytes], threads: int) -> Compute:
    module = torch.export.load(io.BytesIO(files[0])).module()

    def compute(values: Array) -> Array:
        with torch.inference_mode():
            found: Tensor = module(torch.from_numpy(np.ascontiguousarray(values)))
        return found.numpy()

    return compute
