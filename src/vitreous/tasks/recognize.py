"""From images with classes to a trained network, its accuracy on held-out images and its report."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from vitreous.catalog.registry import check_system, check_task, create_model
from vitreous.catalog.results import versions
from vitreous.catalog.tasks import build_report_of
from vitreous.checkpoints import headers
from vitreous.checkpoints.model_files import is_model_file, load_model
from vitreous.checkpoints.tensors import load_exactly, save_tensors
from vitreous.data.contract import BandContract
from vitreous.data.image_collection import ImageCollection, open_images, open_unlabelled
from vitreous.data.provenance import (
    ImageLeakage,
    Provenance,
    SeenImages,
    image_leakage,
    provenance_from_json,
    provenance_to_json,
)
from vitreous.errors import ConfigError, ModelError
from vitreous.files import checked, read_json, write_json, write_text
from vitreous.inference.descriptions import RecognizerHeader
from vitreous.inference.export_format import sha256
from vitreous.inference.recognizer import Recognizer, decided, image_contract
from vitreous.inference.runtimes import ExportedRecognizer
from vitreous.layers.backbone import Backbone
from vitreous.layers.bands import Bands
from vitreous.layers.preprocess import Preprocess
from vitreous.layers.sizes import plain_size
from vitreous.methods._apply import applied, has, reinstall
from vitreous.progress import progress_bar
from vitreous.recipe import RecognizeRecipe
from vitreous.scenes.cube import class_palette
from vitreous.tasks import runs
from vitreous.tasks.checks import check_batch_norms
from vitreous.tasks.image_metrics import image_scores
from vitreous.tasks.image_teacher import ImageTeacher
from vitreous.tasks.provenance import start_provenance
from vitreous.tasks.runs import CONFIG, METRICS, MODEL, PREPROCESS, STATE
from vitreous.tasks.teacher import Distillation

if TYPE_CHECKING:
    from vitreous.inference.export import Parity
    from vitreous.tasks.fit_images import RecognizeTask

TASK = "recognize"
KIND = "recognizer"
PREDICTIONS = "predictions.csv"
LARGEST = 224  # side in pixels of images, where no size is given
SMALLEST = 8

Probabilities = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RecognizeRun:
    """A trained recognizer, and what it was trained for.

    Attributes:
        path: its folder.
        recognizer: the network with its preprocessing.
        name: the system's name.
        model_args: what differs from the variant's own arguments.
        provenance: what its weights have learned from, its own training last.
    """

    path: Path
    recognizer: Recognizer
    name: str
    model_args: dict[str, Any]
    provenance: Provenance

    @property
    def start(self) -> Provenance:
        """The provenance of the weights that its training started from."""
        return runs.before(self.provenance, self.recipe)

    @property
    def methods(self) -> list[dict[str, Any]]:
        """What was applied to its network, first to last."""
        return applied(self.recognizer.net)

    @property
    def recipe(self) -> RecognizeRecipe:
        """The settings it was trained with."""
        return runs.recipe_of(self.path, RecognizeRecipe)


@dataclass
class _Trained:
    """A trained recognizer, and what its training took."""

    recognizer: Recognizer
    seconds: float
    chosen: dict[str, Any] | None = None


def train(
    recipe: RecognizeRecipe, *, resume: bool = False, command: str = "", show: bool = True
) -> Path:
    """Train a network as the recipe says, measure it on the test images and write the report.

    Args:
        recipe: the settings.
        resume: go on with the run folder that the recipe names.
        command: the command line, kept for the report.
        show: print progress.

    Returns:
        The run folder.

    Raises:
        VitreousError: anything that the user can mend; the run folder keeps what was reached.
    """
    console = Console(stderr=True, quiet=not show)
    check_recipe(recipe)
    recipe = runs.prepared(recipe, console, trained=True, networks=True)
    runs.check_start(recipe.init, TASK)
    teacher = open_teacher(recipe)
    console.print(f"reading {recipe.images}", highlight=False, markup=False)
    collection = open_collection(recipe, console)
    start = start_provenance(recipe.init)
    if teacher is not None:  # its answers tell of the labels that it has learned
        start = (*start, *teacher.provenance)
    begun = image_leakage(start, collection.store.digests[collection.of("test")])
    size = image_size(recipe, collection)
    if recipe.init is None:  # a file has arguments of its own
        check_system(
            recipe.model,
            recipe.model_args,
            bands=collection.store.bands,
            image_size=plain_size(size),
        )
    name = f"{Path(recipe.images).stem}-{recipe.model}"
    config = config_of(recipe, collection, command)
    if teacher is not None:
        teacher.check(collection, size)
        config["teacher"] = teacher.noted()
    with runs.started_folder(recipe, config, name, resume=resume) as (folder, first):
        if resume:
            check_unchanged(folder, collection)
            if teacher is not None:
                runs.check_same_teacher(folder, teacher.path, teacher.hash)
        if first:
            _describe(console, collection, begun, size, folder)
        if resume and (folder / MODEL).is_file():  # it was stopped after training
            run = load_run(folder)
            trained, start = (
                _Trained(run.recognizer, runs.figures_of(folder).train_seconds),
                run.start,
            )
        else:
            trained = _fit(
                recipe, collection, size, folder, teacher, console, resume=resume, show=show
            )
            if not first:
                return folder  # the first process does the rest
            learned = collection.store.digests[collection.of("train", "val")]
            own = SeenImages.of(TASK, Path(recipe.images).name, learned)
            _keep(folder, recipe, trained, (*start, own))
        _measure(folder, recipe, trained, collection, begun, console)
        (folder / STATE).unlink(missing_ok=True)
    return folder


def evaluate(path: str | Path) -> dict[str, Any]:
    """Measure a trained run again on the test images of its collection.

    Returns:
        The metrics of ``metrics.json``.
    """
    run = load_run(path)
    collection = open_collection(run.recipe)
    check_unchanged(run.path, collection)
    numbers = collection.of("test")
    began = time.perf_counter()
    found = run.recognizer.predict(collection.store, numbers)
    seconds = time.perf_counter() - began
    row = {
        "name": run.name,
        "kind": "model",
        "parameters": runs.parameter_counts(run.recognizer.net)[0],
        "train_seconds": None,
        "images_per_second": len(numbers) / seconds,
        "val": None,
        "test": scores_of(collection, numbers, found),
    }
    begun = image_leakage(run.start, collection.store.digests[numbers])
    return metrics_of(collection, run.recognizer.size, [row], begun if run.start else None)


@dataclass(frozen=True)
class Classified:
    """What became of a folder of images.

    Attributes:
        path: the table that was written.
        images: how many there are.
        pixels: of all images.
        seconds: from the call to the finished file.
    """

    path: Path
    images: int
    pixels: int
    seconds: float

    @property
    def paths(self) -> list[Path]:
        """Every file that was written."""
        return [self.path]


def apply(
    path: str | Path,
    scene: str | Path,
    out: str | Path,
    *,
    top: int = 5,
    hints: dict[str, Any] | None = None,
    runtime: str | None = None,
    trust: bool = False,
    show: bool = True,
) -> Classified:
    """Write the classes of all images below a folder as CSV, one row per image.

    Args:
        path: the run folder, or the folder of an export.
        scene: the folder, or one image.
        out: the file, CSV.
        top: how many classes to write per image, the most probable first; where images may have several labels, all
            classes have a column.
        hints: reader options for images that are opened as scenes; those of the training when None.
        runtime: what computes it (:func:`vitreous.tasks.export.load_for`).
        trust: also run programs of torch.export that are not ours.
        show: print progress and what is to be known of the images.

    Raises:
        VitreousError: no images, or such as cannot be read or differ from those that the run was trained on.
    """
    from vitreous.tasks.export import load_for

    began = time.perf_counter()
    if Path(out).suffix.lower() != ".csv":
        raise ConfigError(f"{out} is not the name of a table.", "Use the suffix .csv.")
    loaded = load_for(path, runtime, trust=trust)
    recognizer: Recognizer | ExportedRecognizer = loaded.recognizer
    console = Console(stderr=True, quiet=not show)
    if hints is None:
        own = recognizer if isinstance(recognizer, ExportedRecognizer) else loaded.recipe
        hints = own.hints
    with progress_bar("checking", console) as advance:
        store, notes, sample = open_unlabelled(
            scene, hints, advance, bands=recognizer.contract.bands
        )
    _tell(console, notes)
    recognizer.check_images(store, sample)
    with progress_bar("classifying", console) as advance:
        found = recognizer.predict(store, np.arange(len(store)), advance)
    names = recognizer.class_names
    rows = _several_rows(found, names) if recognizer.several else _top_rows(found, names, top)
    files = zip(store.names, rows, strict=True)
    write_text(out, _csv([{"file": name, **row} for name, row in files]))
    pixels = int(store.sizes.prod(1).sum())
    return Classified(Path(out), len(store), pixels, time.perf_counter() - began)


def export(path: str | Path, form: str, folder: str | Path) -> Parity:
    """Write a run as a graph for other runtimes, and check it on its test images, and further ones where they are few.

    Args:
        path: the run folder.
        form: ``onnx``, ``openvino`` or ``torch``.
        folder: the folder to write.

    Raises:
        ModelError: the format has no operator for what the network does, or its export does not agree with it; nothing is
            left then.
        VitreousError: the run cannot be loaded, or its images have changed.
    """
    from vitreous.inference.export_recognizer import RecognizerProduct, export_recognizer

    run = load_run(path)
    collection = open_collection(run.recipe)
    check_unchanged(run.path, collection)
    numbers = np.concatenate([collection.of(role) for role in ("test", "val", "train")])
    source = sha256(run.path / MODEL)
    product = RecognizerProduct(
        run.recognizer, run.name, run.recipe.hints, source, run.provenance, TASK
    )
    store = collection.store
    return export_recognizer(product, folder, form=form, store=store, numbers=numbers)


def load_run(path: str | Path) -> RecognizeRun:
    """Load a trained recognizer.

    Raises:
        CheckpointError: the folder holds no finished run of one, or its checkpoint is damaged.
    """
    path = Path(path)
    with runs.checkpoint(path, TASK) as (tensors, header):
        checked(RecognizerHeader, header, path / MODEL, "Restore the file, or train again.")
        headers.check_counts(header["model_args"], tensors)
        contract = BandContract.from_json(header["contract"])
        size = (int(header["size"][0]), int(header["size"][1]))
        names = list(header["class_names"])
        with torch.device("meta"):
            net = create_model(
                header["name"],
                bands=header["channels"],
                num_classes=len(names),
                image_size=plain_size(size),
                **header["model_args"],
            )
            reinstall(net, header["methods"])
            preprocess = Preprocess(contract.bands, header["channels"])
        several = bool(header["several"])
        recognizer = Recognizer(net, preprocess, contract, names, size, several=several)
        load_exactly(recognizer, tensors, header["name"])
        known = provenance_from_json(header.get(headers.PROVENANCE), path.name)
        return RecognizeRun(path, recognizer.eval(), header["name"], header["model_args"], known)


def check_recipe(recipe: RecognizeRecipe) -> None:
    """Refuse what cannot be trained, before anything is read.

    Raises:
        ConfigError: no images, a system that does not classify images, or batches of one image for batch norms.
        ModelError: there is no such system, or its arguments make none.
    """
    if not recipe.images.strip():
        raise ConfigError(
            "No images are given.",
            "Give a folder or a table: --images FOLDER (see docs/recognition.md).",
        )
    check_task(recipe.model, TASK)
    if recipe.init is None:
        net = check_system(
            recipe.model, recipe.model_args, image_size=plain_size(recipe.size or (32, 32))
        )
        if net is not None:
            check_batch_norms(recipe.model, net, recipe.batch_size)


def open_teacher(recipe: RecognizeRecipe) -> ImageTeacher | None:
    """Load the run that a recipe's network learns from; None where there is none.

    Raises:
        VitreousError: it is no finished run, or there is no such distillation.
    """
    if recipe.teacher is None or recipe.distill is None:
        return None
    distillation = Distillation.of(recipe.distill, recipe.distill_args)
    run = load_run(recipe.teacher)
    digest = sha256(run.path / MODEL)
    return ImageTeacher(run.path, run.name, digest, run.recognizer, run.provenance, distillation)


def open_collection(recipe: RecognizeRecipe, console: Console | None = None) -> ImageCollection:
    """Open and check the images of a recipe, and say what is to be known of them."""
    console = console or Console(stderr=True, quiet=True)
    with progress_bar("checking", console) as advance:
        collection = open_images(
            recipe.images,
            root=recipe.root,
            hints=recipe.hints,
            val_fraction=recipe.val_fraction,
            test_fraction=recipe.test_fraction,
            seed=recipe.split_seed,
            progress=advance,
        )
    _tell(console, collection.notes)
    return collection


def image_size(recipe: RecognizeRecipe, collection: ImageCollection) -> tuple[int, int]:
    """Return height and width of the images that the network gets.

    Without a size in the recipe: that of the images where all have the same and it is not too large, else a square whose
    side is the median of their shorter sides.
    """
    if recipe.size is not None:
        return recipe.size
    sizes = collection.store.sizes
    if (sizes == sizes[0]).all() and sizes.max() <= LARGEST:
        return int(sizes[0, 0]), int(sizes[0, 1])
    side = int(np.clip(np.median(sizes.min(1)), SMALLEST, LARGEST))
    return side, side


def config_of(recipe: RecognizeRecipe, collection: ImageCollection, command: str) -> dict[str, Any]:
    """Return what ``config.json`` holds: what it takes to do the run again, and to notice that it would be another one."""
    return {
        "schema": 1,
        "task": TASK,
        "finished": False,
        "command": command,
        "recipe": recipe.model_dump(),
        "images": {"source": str(collection.source), "count": len(collection.store)},
        "fingerprints": {"images": collection.fingerprint},
        "versions": versions(),
    }


def check_unchanged(folder: Path, collection: ImageCollection) -> None:
    """Refuse to go on with a run, or to measure it again, where its images, labels or roles have changed.

    Raises:
        ConfigError: they have.
    """
    known = runs.config_at(folder).get("fingerprints")
    found = collection.fingerprint
    if isinstance(known, dict) and known.get("images", found) != found:
        raise ConfigError(
            f"The images, labels or roles of the run {folder} changed after it was started.",
            "Restore the original files, or start a new run: results from two versions must not be mixed.",
        )


# -- steps of train ---------------------------------------------------------------------------------------


def _tell(console: Console, notes: Sequence[str]) -> None:
    """Print sentences that a user should know; names of files in them are not markup."""
    for note in notes:
        console.print(note, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _describe(
    console: Console,
    collection: ImageCollection,
    begun: ImageLeakage,
    size: tuple[int, int],
    folder: Path,
) -> None:
    """Say who trains and who tests, and how images reach the network."""
    counts = collection.counts
    drawn = f" (drawn: {', '.join(collection.drawn)})" if collection.drawn else ""
    console.print(
        f"run {folder}\n{len(collection.class_names)} classes, {counts['train']:,} training, {counts['val']:,} "
        f"validation, {counts['test']:,} test images{drawn}, {collection.store.bands} bands; resized and cropped to "
        f"{size[0]} x {size[1]} pixels",
        highlight=False,
        markup=False,
    )
    _tell(console, begun.sentences)


def _fit(
    recipe: RecognizeRecipe,
    collection: ImageCollection,
    size: tuple[int, int],
    folder: Path,
    teacher: ImageTeacher | None,
    console: Console,
    *,
    resume: bool,
    show: bool,
) -> _Trained:
    from vitreous.tasks.fit_images import RecognizeTask
    from vitreous.tasks.loop import fit

    torch.manual_seed(recipe.seed)
    recognizer = _untrained(recipe, collection, size, console)
    weights = class_weights(collection, recipe.class_weights)
    task = RecognizeTask(recognizer, collection, recipe, weights, teacher)
    fit(task, folder, resume=resume, show=show)
    trained = task.result()
    chosen = _chosen(task)
    if chosen is not None:
        console.print(
            f"kept the weights of epoch {chosen['epoch']} of {chosen['epochs']}: validation {chosen['score']:.2%}",
            highlight=False,
        )
    return _Trained(trained, task.elapsed, chosen)


def train_further(
    recognizer: Recognizer,
    recipe: RecognizeRecipe,
    collection: ImageCollection,
    folder: Path,
    *,
    epochs: int,
    rate: float,
    show: bool,
) -> Recognizer:
    """Train a network on as it is, and return it with the weights to use.

    Args:
        recognizer: changed in place.
        recipe: of the run that it comes from.
        collection: its images.
        folder: for the state while it trains.
        epochs: of training.
        rate: learning rate, as a share of the recipe's.
        show: print progress.
    """
    from vitreous.tasks.fit_images import RecognizeTask
    from vitreous.tasks.loop import fit
    from vitreous.tasks.training import own_weights

    changes = {
        "epochs": epochs,
        "learning_rate": rate * recipe.learning_rate,
        "warmup_epochs": 0,
        "patience": 0,
        "teacher": None,
        "distill": None,
        "devices": 1,
    }
    own = recipe.model_copy(update=changes)
    torch.manual_seed(own.seed)
    own_weights(recognizer)
    task = RecognizeTask(recognizer, collection, own, class_weights(collection, own.class_weights))
    fit(task, folder, resume=False, show=show)
    return task.result()


def _chosen(task: RecognizeTask) -> dict[str, Any] | None:
    """Return which epoch validated best; None where there are no validation images."""
    if task.best is None:
        return None
    return {
        "epoch": task.best_epoch + 1,
        "epochs": len(task.history),
        "score": task.best_score,
    }


def class_weights(collection: ImageCollection, kind: str) -> torch.Tensor:
    """Return a weight per class: 1, or inverse (root) frequency; the mean over the training images' labels is 1."""
    counts = torch.from_numpy(collection.targets[collection.of("train")]).sum(0).clamp(min=1)
    power = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}[kind]
    weights = counts**-power
    return weights * counts.sum() / (weights * counts).sum()


def _untrained(
    recipe: RecognizeRecipe, collection: ImageCollection, size: tuple[int, int], console: Console
) -> Recognizer:
    """Return what is to be trained: fresh, or with the weights of a run or a model file."""
    contract = image_contract(collection.store, collection.sample)
    preprocess = standardized(collection)
    count = len(collection.class_names)
    if recipe.init is None:
        net = create_model(
            recipe.model,
            bands=preprocess.channels,
            num_classes=count,
            image_size=plain_size(size),
            **recipe.model_args,
        )
    elif is_model_file(recipe.init) or (Path(recipe.init) / PREPROCESS).is_file():
        net = _from_file(recipe, Bands(contract.bands, contract.wavelengths), count, size, console)
    else:
        net, preprocess = _from_run(recipe, collection, contract, size)
    net.train().requires_grad_(True)
    names, several = collection.class_names, collection.several
    return Recognizer(net, preprocess, contract, names, size, several=several)


def standardized(collection: ImageCollection) -> Preprocess:
    """Return a z-score per band over the training images' pixels.

    Raises:
        ModelError: all these pixels are alike.
    """
    mean, deviation = collection.mean, collection.deviation
    constant = deviation <= 1e-9 * np.maximum(np.abs(mean), 1e-30)
    if constant.all():
        raise ModelError("All training images have one colour.", "Check the images.")
    scale = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation))
    preprocess = Preprocess(len(mean), len(mean))
    preprocess.matrix.copy_(torch.from_numpy(np.diag(scale)))
    preprocess.mean.copy_(torch.from_numpy(mean))
    return preprocess


def _from_file(
    recipe: RecognizeRecipe, bands: Bands, count: int, size: tuple[int, int], console: Console
) -> Backbone:
    """Load a model file, or that of a pre-training, for these bands with a new head, and say what became of it."""
    init = Path(str(recipe.init))
    file = str(init / MODEL) if (init / PREPROCESS).is_file() else str(recipe.init)
    net, report = load_model(
        file, bands=bands, num_classes=count, image_size=plain_size(size), new_head=True
    )
    _check_same(recipe, report.made.name, report.made.model_args)
    console.print(f"starting from {report}", highlight=False, markup=False, soft_wrap=True)
    return net


def _from_run(
    recipe: RecognizeRecipe,
    collection: ImageCollection,
    contract: BandContract,
    size: tuple[int, int],
) -> tuple[Backbone, Preprocess]:
    """Load the run that training starts from; its preprocessing comes along, because its weights expect it."""
    run = load_run(str(recipe.init))
    start = run.recognizer
    _check_same(recipe, run.name, run.model_args)
    if has(start.net, "quantize"):
        raise ModelError(
            f"The run {recipe.init} is quantized, and quantized weights cannot be trained.",
            "Start from the run that was quantized.",
        )
    if start.size != size:
        raise ModelError(
            f"The run {recipe.init} was trained on images of {start.size[0]} x {start.size[1]} pixels, not "
            f"{size[0]} x {size[1]}.",
            f"Use --image-size {start.size[0]}x{start.size[1]}.",
        )
    start.check_images(collection.store, collection.sample)
    # Loaded weights may be read-only views of the file; training needs its own.
    own = {name: t.clone() for name, t in start.state_dict().items()}
    start.load_state_dict(own, assign=True)
    net = start.net
    assert isinstance(net, Backbone)
    if start.class_names != collection.class_names or start.several != collection.several:
        net.reset_head(len(collection.class_names))
        reinstall(net, applied(net))  # the new head gets what the old one had
    return net, start.preprocess


def _check_same(recipe: RecognizeRecipe, name: str, model_args: dict[str, Any]) -> None:
    """Refuse weights of another network than the recipe's.

    Raises:
        ModelError: they are.
    """
    if name != recipe.model:
        raise ModelError(
            f"{recipe.init} holds '{name}', not '{recipe.model}'.", f"Use --model {name}."
        )
    if recipe.model_args not in ({}, model_args):
        raise ModelError(
            f"{recipe.init} has the model arguments {model_args}, not {recipe.model_args}.",
            "Omit --model-args: they come with the weights.",
        )


def _keep(folder: Path, recipe: RecognizeRecipe, trained: _Trained, provenance: Provenance) -> None:
    """Write what was trained; the weights last, because resuming takes them for the end of training."""
    config = read_json(folder / CONFIG)
    parameters, trainable = runs.parameter_counts(trained.recognizer.net)
    config["model"] = {
        "name": recipe.model,
        "parameters": parameters,
        "trainable": trainable,
        "train_seconds": trained.seconds,
        "chosen": trained.chosen,
    }
    write_json(folder / CONFIG, config)
    save_recognizer(folder, trained.recognizer, recipe.model, provenance)


def save_recognizer(
    folder: Path, recognizer: Recognizer, name: str, provenance: Provenance | None
) -> None:
    """Write ``model.safetensors``: everything that is needed to classify raw images."""
    net = recognizer.net
    assert isinstance(net, Backbone)
    header = {
        "schema": headers.SCHEMA,
        "kind": KIND,
        "name": name,
        "model_args": dict(net.arguments),
        "methods": applied(net),
        "contract": recognizer.contract.to_json(),
        "channels": recognizer.preprocess.channels,
        "class_names": recognizer.class_names,
        "several": recognizer.several,
        "size": list(recognizer.size),
        headers.PROVENANCE: provenance_to_json(provenance),
    }
    save_tensors(folder / MODEL, recognizer.state_dict(), header)


def _measure(
    folder: Path,
    recipe: RecognizeRecipe,
    trained: _Trained,
    collection: ImageCollection,
    begun: ImageLeakage,
    console: Console,
) -> None:
    """Score the test images, and write predictions, metrics and report."""
    numbers = collection.of("test")
    with progress_bar("testing", console) as advance:
        began = time.perf_counter()
        found = trained.recognizer.predict(collection.store, numbers, advance)
        seconds = time.perf_counter() - began
    val = collection.of("val")
    known = trained.recognizer.predict(collection.store, val) if len(val) else None
    row = {
        "name": recipe.model,
        "kind": "model",
        "parameters": runs.parameter_counts(trained.recognizer.net)[0],
        "train_seconds": runs.figures_of(folder).train_seconds,
        "images_per_second": len(numbers) / seconds,
        "val": None if known is None else scores_of(collection, val, known),
        "test": scores_of(collection, numbers, found),
    }
    write_tested(folder, collection, numbers, found)
    start = None if recipe.init is None and recipe.teacher is None else begun
    write_json(folder / METRICS, metrics_of(collection, trained.recognizer.size, [row], start))
    if recipe.report:
        console.print("writing the report", highlight=False)
        write_report(folder, collection)


def write_report(folder: Path, collection: ImageCollection) -> None:
    """Write the report of a run."""
    build_report_of(TASK)(folder, collection)


def scores_of(
    collection: ImageCollection, numbers: Numbers, found: Probabilities
) -> dict[str, Any]:
    """Return the scores of some images, as ``metrics.json`` holds them."""
    return image_scores(
        found, collection.targets[numbers], collection.class_names, several=collection.several
    )


def metrics_of(
    collection: ImageCollection,
    size: tuple[int, int],
    systems: list[dict[str, Any]],
    begun: ImageLeakage | None,
) -> dict[str, Any]:
    """Return what ``metrics.json`` holds: the classes, the images and the systems' rows.

    Args:
        collection: the images.
        size: that they were brought to.
        systems: the rows.
        begun: what the weights that training started from have seen of the test images, where it started from any.
    """
    leaked = collection.leaked
    leakage = float(leaked.mean()) if len(leaked) else 0.0
    names = collection.class_names
    return {
        "schema": 1,
        "task": TASK,
        "classes": [
            {"value": number, "name": name, "color": color}
            for number, (name, color) in enumerate(
                zip(names, class_palette(len(names)), strict=True), 1
            )
        ],
        "several": collection.several,
        "figure": "map" if collection.several else "top1",
        "images": {
            "source": collection.source.name,
            "counts": collection.counts,
            "drawn": list(collection.drawn),
            "bands": collection.store.bands,
            "size": list(size),
            "leakage": leakage,
            "optimistic": leakage > 0 or bool(begun and begun.share > 0),
            "notes": list(collection.notes),
        },
        "start": None if begun is None else begun.to_json(),
        "systems": systems,
    }


# -- tables of predictions ----------------------------------------------------------------------------------


def write_tested(
    folder: Path, collection: ImageCollection, numbers: Numbers, found: Probabilities
) -> None:
    """Write ``predictions.csv``: a row per test image with its file, its classes, and what was predicted."""
    names = collection.class_names
    truth = [
        ";".join(names[k] for k in np.flatnonzero(target)) for target in collection.targets[numbers]
    ]
    rows = _several_rows(found, names) if collection.several else _top_rows(found, names, 1)
    tested = [
        {"file": collection.store.names[number], "truth": own, **row}
        for number, own, row in zip(numbers, truth, rows, strict=True)
    ]
    write_text(folder / PREDICTIONS, _csv(tested))


def _top_rows(found: Probabilities, names: list[str], top: int) -> list[dict[str, Any]]:
    """Return the most probable classes of every image."""
    order = np.argsort(-found, axis=1, kind="stable")[:, : min(top, len(names))]
    rows = []
    for own, best in zip(found, order, strict=True):
        row: dict[str, Any] = {}
        for place, number in enumerate(best, start=1):
            end = "" if place == 1 else f"_{place}"
            row |= {f"class{end}": names[number], f"probability{end}": f"{own[number]:.4f}"}
        rows.append(row)
    return rows


def _several_rows(found: Probabilities, names: list[str]) -> list[dict[str, Any]]:
    """Return the labels of every image, and the probability of every class."""
    return [
        {
            "labels": ";".join(name for name, yes in zip(names, has, strict=True) if yes),
            **{name: f"{p:.4f}" for name, p in zip(names, own, strict=True)},
        }
        for own, has in zip(found, decided(found, several=True), strict=True)
    ]


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
