"""From a trained classifier and a scene of any size to a georeferenced map, with flat memory."""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from vitreous.errors import ConfigError, ModelError, SceneError
from vitreous.inference.maps import Classes, Grid, map_products
from vitreous.inference.picture import write_picture
from vitreous.inference.windows import (
    Job,
    Layer,
    SceneClassifier,
    Scored,
    Window,
    plan_windows,
    step_of,
    window_side,
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What :func:`predict_scene` made.

    Attributes:
        map: the class map.
        picture: the PNG with legend, None where not asked for.
        probabilities: the probabilities, None where not asked for.
        pixels: pixels of the scene.
        class_pixels: pixels of class 1, 2, ...
        seconds: from the call to the finished products.
        peak_memory: the largest resident size of this process so far in bytes; None where the system
            does not tell.
        layers: the further files that were asked for.
    """

    map: Path
    picture: Path | None
    probabilities: Path | None
    pixels: int
    class_pixels: tuple[int, ...]
    seconds: float
    peak_memory: int | None
    layers: tuple[Path, ...] = ()

    @property
    def valid_pixels(self) -> int:
        """Pixels that have a class."""
        return sum(self.class_pixels)

    @property
    def pixels_per_second(self) -> float:
        """Pixels of the scene per second, reading and writing included."""
        return self.pixels / self.seconds

    @property
    def paths(self) -> list[Path]:
        """Every file that was written."""
        names = Path(f"{self.map}.aux.xml")  # not of codes that GDAL's list of names cannot hold
        written = (self.map, names if names.exists() else None, self.picture, self.probabilities)
        return [path for path in (*written, *self.layers) if path is not None]


def predict_scene(
    classifier: SceneClassifier,
    scene: xr.DataArray,
    out: str | Path,
    *,
    class_names: Sequence[str],
    class_colors: Sequence[str],
    class_codes: Sequence[int] | None = None,
    probabilities: str | Path | None = None,
    layers: Mapping[Path, Layer] | None = None,
    window: int | None = None,
    workers: int | None = None,
    dask: str | None = None,
    png: bool = True,
    check_values: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Map a whole scene.

    The scene is read in windows with the context that the classifier needs; every pixel is scored exactly
    once, so the map does not depend on the windows. Beyond the scene's edge the scene is mirrored, or NaN where
    ``classifier.padding`` is ``zero``. Invalid pixels get 0.

    Args:
        classifier: a trained system.
        scene: the scene, with the bands that the classifier was trained on.
        out: the map, ``.tif``: a COG of the smallest type that holds the codes, with a nodata value (0, where
            that is no class), class names and colours, on the scene's grid.
        class_names: one name per class from 1 on.
        class_colors: one ``#rrggbb`` per class from 1 on.
        class_codes: the map's value for each class; 1, 2, ... when None.
        probabilities: also write class probabilities here, ``.tif``: a COG with one float32 band per class.
        layers: what else to write, by its file: COGs like that of the probabilities.
        window: largest side of a window in pixels; from the number of bands when None.
        workers: windows computed at a time: threads here (1 when None), processes of a local Dask cluster
            (one per core when None).
        dask: ``local`` or the address of a Dask scheduler (``tcp://host:port``) that computes the windows.
        png: also write a picture with legend beside the map.
        check_values: first compare some pixels with those that the classifier was trained on, and refuse a scene in
            another unit or scale, whatever it says of itself.
        progress: called with (pixels done, pixels in all), first with (0, all).

    Returns:
        What was written, and how long it took.

    Raises:
        ModelError: the scene does not have the classifier's bands or unit, its values are far from those of the
            training pixels, or names and classes disagree.
        SceneError: the scene has no valid pixel, or cannot be read.
        ConfigError: settings that make no sense.
        VitreousError: the products cannot be written, or the cluster does not answer.
    """
    start = time.perf_counter()
    out = Path(out)
    probabilities = None if probabilities is None else Path(probabilities)
    layers = layers or {}
    _check_paths(scene, [out, *([probabilities] if probabilities else []), *layers])
    classes = Classes(class_names, class_colors, tuple(class_codes or ()))
    _check_classes(classifier, classes)
    _check_positive(window=window, workers=workers)
    bands = np.asarray(classifier.contract.select(scene), dtype=np.int64)
    if check_values and getattr(classifier.contract, "levels", None) is not None:
        classifier.contract.check_values(scene)
    grid = Grid.of(scene)
    side = window or window_side(len(bands), classifier.num_classes, classifier.margin)
    windows = plan_windows(grid.height, grid.width, side, step_of(classifier))
    job = Job(classifier, bands, probabilities is not None, tuple(layers.values()))
    further = [(path, layer.bands) for path, layer in layers.items()]
    pixels = grid.height * grid.width
    done = 0
    if progress:
        progress(done, pixels)
    with (
        map_products(out, probabilities, grid, classes, further) as writer,
        closing(_scored_windows(job, scene, windows, workers, dask)) as scored_windows,
    ):
        for place, scored in scored_windows:
            writer.write(place, scored)
            done += place.pixels
            if progress:
                progress(done, pixels)
        class_pixels = tuple(int(n) for n in writer.class_pixels[1:])
        if not any(class_pixels):
            raise SceneError(
                f"{_name(scene)} has no valid pixels in the {len(bands)} bands that the model uses.",
                "Check the scene's no-data value and bad bands with 'vitreous info'.",
            )
    picture = out.with_suffix(".png") if png else None
    if picture:
        write_picture(out, picture, classes, class_pixels, title=Path(_name(scene)).name)
    seconds = time.perf_counter() - start
    memory = _peak_memory()
    return Prediction(
        out, picture, probabilities, pixels, class_pixels, seconds, memory, tuple(layers)
    )


def _scored_windows(
    job: Job, scene: xr.DataArray, windows: list[Window], workers: int | None, dask: str | None
) -> Generator[tuple[Window, Scored], None, None]:
    if dask is None:
        return _score_here(job, scene, windows, workers or 1)
    from vitreous.inference.cluster import score_on_cluster

    return score_on_cluster(job, scene, windows, dask, workers)


def _score_here(
    job: Job, scene: xr.DataArray, windows: list[Window], workers: int
) -> Generator[tuple[Window, Scored], None, None]:
    """Score windows in their order, with a bounded number of results waiting."""

    def work(window: Window) -> Scored:
        return job.score(job.read(scene, window))

    if workers == 1:  # reading ahead in a second thread was measured and brought nothing
        for window in windows:
            yield window, work(window)
        return
    waiting: deque[tuple[Window, Future[Scored]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for window in windows:
                waiting.append((window, pool.submit(work, window)))
                if len(waiting) > workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _check_paths(scene: xr.DataArray, files: Sequence[Path]) -> None:
    """Refuse files that cannot be written, or that are one and the same; the first is the map."""
    source = str(scene.attrs.get("source") or "")
    for path in files:
        if path.suffix.lower() not in {".tif", ".tiff"}:
            raise ConfigError(
                f"The map {path} does not end in .tif.",
                "Maps are written as GeoTIFF: give a name ending in .tif.",
            )
        if path.is_dir():
            raise ConfigError(f"{path} is a folder.", "Give a file name.")
        if source and path.resolve() == Path(source).resolve():
            raise ConfigError(
                f"The map would overwrite the scene {source}.", "Choose another name."
            )
    places = [path.resolve() for path in files]
    for path, place in zip(files, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"Two products would both be {path}.", "Give them different names.")


def _check_classes(classifier: SceneClassifier, classes: Classes) -> None:
    count = classifier.num_classes
    if not len(classes.names) == len(classes.colors) == len(set(classes.values)) == count:
        raise ModelError(
            f"The model has {count} classes, but there are {len(classes.names)} names, "
            f"{len(classes.colors)} colours and {len(set(classes.values))} codes.",
            "Give one of each per class.",
        )
    for color in classes.colors:
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
            raise ConfigError(f"'{color}' is not a colour.", "Colours are written #rrggbb.")


def _check_positive(**settings: int | None) -> None:
    for name, value in settings.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}.", "It must be at least 1.")


def _name(scene: xr.DataArray) -> str:
    return str(scene.attrs.get("source") or "the scene")


def _peak_memory() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
