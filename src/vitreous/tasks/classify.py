"""The main job: from a labelled scene to a trained system, its accuracy, its map and its report."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from rich.console import Console

from vitreous.catalog.registry import card, check_task, stage, system_module
from vitreous.catalog.tasks import build_report_of
from vitreous.data.blocks import TEST, TRAIN, VAL
from vitreous.data.contract import BandContract
from vitreous.data.fingerprint import Ground
from vitreous.data.pixels import spectra_at
from vitreous.data.provenance import Provenance, Seen, split_leakage, start_leakage
from vitreous.data.regions import PixelRegions, best_side, reduce_scene
from vitreous.data.splits import Split
from vitreous.data.tiles import TilePixels
from vitreous.errors import ConfigError, ModelError, SplitError, VitreousError
from vitreous.files import read_json, write_json
from vitreous.inference.dense_classifier import DenseClassifier
from vitreous.inference.export_format import sha256
from vitreous.inference.maps import class_numbers, no_georeference_warning
from vitreous.inference.pixels import classify_pixels
from vitreous.inference.predict import Prediction, predict_scene
from vitreous.layers.bands import Bands
from vitreous.layers.frozen import hold_frozen
from vitreous.layers.preprocess import Preprocess
from vitreous.methods import _apply as methods
from vitreous.methods._apply import applied, complete_settings, has, reinstall
from vitreous.methods.adapt._freeze import freeze_base, is_adapter
from vitreous.models._pixel_estimator import PixelEstimator
from vitreous.progress import progress_bar
from vitreous.recipe import Recipe
from vitreous.scenes.cube import read_window
from vitreous.tasks import runs
from vitreous.tasks.checks import check_models, explained
from vitreous.tasks.labelled import LabelledScene, open_labelled
from vitreous.tasks.metrics import scores
from vitreous.tasks.provenance import start_provenance
from vitreous.tasks.runs import CONFIG, METRICS, MODEL, PREPROCESS, SPLIT, STATE, load_run
from vitreous.tasks.weights import is_model_file, load_model

if TYPE_CHECKING:
    from vitreous.inference.export import Parity
    from vitreous.tasks.fit import Choice, Lesson
    from vitreous.tasks.teacher import Distillation, SceneTeacher

TASK = "classify"
MAP = "map.tif"
REFIT = "refit"  # folder of the second training, within the run's
DECODER_WIDTH = 64  # of mode dense
LEVEL_PIXELS = 20_000  # training pixels that tell how bright they all are


@dataclass
class Trained:
    """A trained system, and what its training took.

    Attributes:
        classifier: the system.
        seconds: that it trained for.
        parameters: how many it has; None of estimators.
        trainable: how many of them were trained.
        model_args: what differs from the variant's own arguments.
        choice: the epoch that validation pixels chose, where they did.
    """

    classifier: runs.Network | PixelEstimator
    seconds: float
    parameters: int | None = None
    trainable: int | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    choice: Choice | None = None


def train(recipe: Recipe, *, resume: bool = False, command: str = "", show: bool = True) -> Path:
    """Train a system as the recipe says, measure it, map the scene and write the report.

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
    check_task(recipe.model, TASK)
    for name in recipe.baselines:
        check_task(name, TASK, baseline=True)
    recipe = runs.prepared(
        recipe,
        console,
        trained=runs.is_network(recipe.model),
        networks=any(map(runs.is_network, (recipe.model, *recipe.baselines))),
    )
    net = check_models(recipe)
    distillation = _distillation(recipe)
    if net is not None:
        with torch.device("meta"):
            runs.with_decoder(net, _settings(recipe))
    if recipe.adapt_method is not None:
        _check_method(recipe.adapt_method, recipe.adapt_args, "adapt", "adapt the model")
    if recipe.reduce is not None:
        _check_method(recipe.reduce, recipe.reduce_args, "reduce", "reduce tokens")
    runs.check_start(recipe.init, TASK)
    teacher = open_teacher(recipe)
    console.print(f"reading {recipe.scene}", highlight=False)
    data = open_labelled(recipe)
    start = start_provenance(recipe.init)
    if teacher is not None:  # its answers tell of the labels that it has learned
        teacher.check(data)
        start = (*start, *teacher.provenance)
    name = f"{Path(recipe.scene).stem}-{recipe.model}"
    config = runs.config_of(TASK, recipe, data.scene, command, data.fingerprint)
    if teacher is not None and distillation is not None:
        config["teacher"] = teacher.noted(distillation)
    with runs.started_folder(recipe, config, name, resume=resume) as (folder, first):
        if resume:
            runs.check_unchanged(folder, data.scene, data.fingerprint)
            _check_same_teacher(folder, teacher)
        split = _split(recipe, data, folder)
        contract = _contract(data, split)
        if first:
            _describe(console, recipe, data, split, start, folder)
        if resume and (folder / MODEL).is_file():  # it was stopped after training
            run = load_run(folder)
            trained, start = Trained(run.classifier, *_known_figures(folder)), run.start
        elif runs.is_network(recipe.model):
            trained = _fit_network(
                recipe, data, split, contract, folder, teacher, resume=resume, show=show
            )
            if not first:
                return folder  # the first process does the rest
            _keep(folder, recipe, trained, data, split, start)
        else:
            trained = _fit_estimator(recipe.model, recipe, data, split, contract)
            _keep(folder, recipe, trained, data, split, start)
        _measure(folder, recipe, trained, data, split, start, console)
        _drop_states(folder)
    return folder


def evaluate(path: str | Path) -> dict[str, Any]:
    """Measure a trained run again on the test pixels of its split.

    Returns:
        The metrics of ``metrics.json``, for the trained system alone.
    """
    run = load_run(path)
    data, split = reopened(run)
    parameters = (
        runs.parameter_counts(run.classifier)[0]
        if isinstance(run.classifier, runs.Network)
        else None
    )
    row = {
        "name": run.name,
        "kind": card(run.name).kind,
        "parameters": parameters,
        "trainable": None,
        "train_seconds": None,
        "val": None,
        **_test_figures(run.classifier, data, split, run.class_names),
    }
    return metrics_of(data, split, run.recipe, learned_size(run), [row], run.start)


def apply(
    path: str | Path,
    scene: xr.DataArray,
    out: str | Path,
    *,
    probabilities: str | Path | None = None,
    window: int | None = None,
    workers: int | None = None,
    dask: str | None = None,
    runtime: str | None = None,
    trust: bool = False,
) -> Prediction:
    """Map a scene with a run or an export of one.

    Args:
        path: a run folder, or the folder of an export.
        scene: the scene.
        out: the map, ``.tif``.
        probabilities: also write class probabilities here.
        window: largest side of a window in pixels.
        workers: windows computed at a time.
        dask: ``local`` or the address of a Dask scheduler.
        runtime: what computes it (:func:`vitreous.tasks.export.load_for`).
        trust: also run programs of torch.export that are not ours.

    Raises:
        VitreousError: what is there cannot be loaded, or the scene does not fit it.
    """
    from vitreous.tasks.export import load_for

    trained = load_for(path, runtime, trust=trust)
    with progress_bar("mapping") as advance:
        return predict_scene(
            trained.classifier,
            scene,
            out,
            class_names=trained.class_names,
            class_colors=trained.class_colors,
            class_codes=trained.class_codes,
            probabilities=probabilities,
            window=window,
            workers=workers,
            dask=dask,
            progress=advance,
        )


def export(path: str | Path, form: str, folder: str | Path, *, single: bool = False) -> Parity:
    """Write a run as graphs for other runtimes, and check them on test pixels of its scene.

    Args:
        path: the run folder.
        form: ``onnx``, ``openvino`` or ``torch``.
        folder: the folder to write.
        single: one graph from the surroundings of a pixel to its class, for other software; maps with it are slower.

    Raises:
        ModelError: the run is not a network, or its export does not agree with it; nothing is left then.
        VitreousError: the run cannot be loaded, or its scene not be read.
    """
    from vitreous.inference import export as graphs

    run = load_run(path)
    if not isinstance(run.classifier, runs.Network):
        raise ModelError(
            f"'{run.name}' is not a network; only networks can be exported.",
            "Use the run itself: vitreous predict.",
        )
    data = open_labelled(run.recipe, again=True)
    split = fitting(run.split, data)
    product = graphs.Product(
        run.classifier,
        run.name,
        run.class_names,
        run.class_colors,
        sha256(run.path / MODEL),
        run.provenance,
        run.class_codes,
        TASK,
    )
    pixels = split.pixels(TEST)
    return graphs.export(product, folder, form=form, scene=data.scene, pixels=pixels, single=single)


def reopened(run: runs.Run) -> tuple[LabelledScene, Split]:
    """Open the scene and labels of a finished run again, with its split.

    Raises:
        VitreousError: they are others than it was trained on.
    """
    data = open_labelled(run.recipe, again=True)
    split = fitting(run.split, data)
    runs.check_unchanged(run.path, data.scene, data.fingerprint)
    return data, split


def draw_split(recipe: Recipe, data: LabelledScene) -> Split:
    """Divide the labelled pixels as the recipe says, leaving out pixels without a valid measurement.

    Raises:
        VitreousError: the labels cannot be divided so, or no pixel is left to train or to test.
    """
    size = _receptive_size(recipe)
    try:
        split = data.split(recipe, size)
    except SplitError as error:
        raise explained(error, recipe, size) from error
    usable = _valid_pixels(data, BandContract.of(data.scene), split)
    if not usable.all():
        _say_unmeasured(data, split, usable, masked="mask" in recipe.scene_hints)
        roles = split.roles.copy()
        roles[~usable] = 0
        split = Split(roles, split.method, split.params, split.seed)
    for role, name in ((TRAIN, "training"), (TEST, "test")):
        if len(split.pixels(role)) == 0:
            raise VitreousError(
                f"No {name} pixel has valid data.",
                "Check the scene's no-data value, or change the split.",
            )
    return split


def _say_unmeasured(
    data: LabelledScene, split: Split, usable: npt.NDArray[np.bool_], *, masked: bool
) -> None:
    """Say in one line what is lost with labelled pixels that have no valid measurement, or are masked.

    Raises:
        VitreousError: a single class is left.
    """
    labels, chosen = np.asarray(data.labels.values), split.roles > 0
    before, after = (np.unique(labels[mask]) for mask in (chosen, chosen & usable))
    lost = int((chosen & ~usable).sum())
    why = "are masked or have no valid data" if masked else "have no valid data"
    words = (
        f"{lost:,} of {int(chosen.sum()):,} labelled pixels {why}; {after.size} of {before.size} classes"
        " remain"
    )
    advice = "Check the scene's no-data value, mask and bands with 'vitreous info'."
    if after.size == 1 < before.size:
        raise VitreousError(f"{words}, and a classifier needs at least two.", advice)
    warnings.warn(f"{words}.", stacklevel=3)


def fit_and_score(
    recipe: Recipe, data: LabelledScene, split: Split, folder: Path
) -> tuple[Trained, dict[str, Any]]:
    """Train the recipe's model on a split and score it on the test pixels; no map, no report.

    Args:
        recipe: the settings; those of the data and the split are not read.
        data: the scene and its labels.
        split: who trains and who tests.
        folder: keeps the state while a network trains; a training interrupted there goes on.

    Returns:
        The trained system and its row of ``metrics.json``.
    """
    contract = _contract(data, split)
    if runs.is_network(recipe.model):
        folder.mkdir(parents=True, exist_ok=True)
        teacher = open_teacher(recipe)
        trained = _fit_network(
            recipe, data, split, contract, folder, teacher, resume=True, show=False
        )
        _drop_states(folder)
    else:
        trained = _fit_estimator(recipe.model, recipe, data, split, contract)
    row = _system_row(recipe.model, trained)
    row |= _test_figures(trained.classifier, data, split, data.class_names)
    return trained, row


def learned_from(recipe: Recipe, split: Split) -> Split:
    """Return the split with all pixels that a system's weights come from among its training pixels.

    Validation pixels choose the epoch of a network; with ``refit`` it is then trained on them as well. Estimators have
    nothing to choose and are trained on both at once, so that no label is withheld in vain.
    """
    return (
        split.without_validation() if recipe.refit or not runs.is_network(recipe.model) else split
    )


def open_teacher(recipe: Recipe) -> SceneTeacher | None:
    """Load the run that a network learns from, None where there is none.

    Raises:
        VitreousError: it is no finished run of a network that classifies, or cannot teach in this mode.
    """
    if recipe.teacher is None or not runs.is_network(recipe.model):
        return None
    from vitreous.tasks.teacher import SceneTeacher

    return SceneTeacher(recipe.teacher, recipe)


def _distillation(recipe: Recipe) -> Distillation | None:
    if recipe.distill is None or not runs.is_network(recipe.model):
        return None
    from vitreous.tasks.teacher import Distillation

    return Distillation.of(recipe.distill, recipe.distill_args)


def _check_same_teacher(folder: Path, teacher: SceneTeacher | None) -> None:
    """Refuse to go on with another teacher than the training began with.

    Raises:
        ConfigError: its weights have changed.
    """
    known = runs.config_at(folder).get("teacher")
    if teacher is not None and (known or {}).get("sha256") != teacher.hash:
        raise ConfigError(
            f"The teacher {teacher.path} changed after the run {folder} was started.",
            "Restore its model.safetensors, or start a new run.",
        )


def learned_size(run: runs.Run) -> int:
    """Return the side of the square around a training pixel that a run has learned from, by itself or by its teacher."""
    return max(receptive_size(run.classifier), runs.teacher_size(run.path))


def receptive_size(classifier: runs.Network | PixelEstimator) -> int:
    """Return the side of the square around a training pixel that is learned from."""
    if isinstance(classifier, PixelEstimator):
        return 2 * classifier.margin + 1
    return classifier.receptive_size


# -- steps of train ---------------------------------------------------------------------------------------


def _check_method(name: str, settings: dict[str, Any], wanted: str, does: str) -> None:
    """Refuse a method of another stage, and settings that it does not have."""
    complete_settings(name, settings)
    if stage(name) != wanted:
        raise ConfigError(f"'{name}' does not {does}.", "'vitreous methods' lists what does.")


def _split(recipe: Recipe, data: LabelledScene, folder: Path) -> Split:
    """Return the run's split: the saved one where there is one, so that resuming cannot change it."""
    if (folder / SPLIT).is_file():
        return fitting(Split.load(folder / SPLIT), data)
    split = draw_split(recipe, data)
    split.save(folder / SPLIT)
    return split


def fitting(split: Split, data: LabelledScene) -> Split:
    """Return a saved split, if it was made for labels of this size."""
    if split.roles.shape != data.labels.shape:
        raise VitreousError(
            f"The run's split was made for {split.roles.shape} pixels; the labels now have {data.labels.shape}.",
            "Restore the scene and labels that it was trained on.",
        )
    return split


def _receptive_size(recipe: Recipe) -> int:
    teacher = open_teacher(recipe)
    return max(_own_size(recipe), 1 if teacher is None else teacher.classifier.receptive_size)


def _own_size(recipe: Recipe) -> int:
    builder = system_module(recipe.model).build
    if not runs.is_network(recipe.model):
        return int(card(recipe.model).variants[recipe.model].get("spatial_window", 1))
    return recipe.patch_size + (2 * int(builder.stem_reach) if recipe.mode == "scene" else 0)


def _valid_pixels(
    data: LabelledScene, contract: BandContract, split: Split
) -> npt.NDArray[np.bool_]:
    """Return ``(height, width)``: False where a pixel with a role has no valid measurement."""
    bands = contract.select(data.scene)
    valid = np.ones(split.roles.shape, dtype=bool)
    width = split.roles.shape[1]
    strip = max(1, 2**24 // (len(bands) * width))
    for top in range(0, len(valid), strip):
        rows = slice(top, min(top + strip, len(valid)))
        if split.roles[rows].any():
            valid[rows] = np.isfinite(read_window(data.scene, rows, slice(0, width), bands)[0])
    return valid


def _contract(data: LabelledScene, split: Split) -> BandContract:
    """Return the bands and unit of the scene, and how bright the training pixels are."""
    contract = BandContract.of(data.scene)
    pixels = split.pixels(TRAIN)
    some = pixels[:: -(-len(pixels) // LEVEL_PIXELS)]
    return contract.measured(spectra_at(data.scene, contract.select(data.scene), some))


def _describe(
    console: Console,
    recipe: Recipe,
    data: LabelledScene,
    split: Split,
    start: Provenance,
    folder: Path,
) -> None:
    """Say which pixels train and test, and what the test pixels are worth."""
    counts = split.counts
    side = int(split.params.get("patch_size", 1))
    facts = metrics_of(data, split, recipe, side, [], start)
    console.print(
        f"run {folder}\nsplit '{split.method}': {counts['train']} training, {counts['val']} validation, "
        f"{counts['test']} test pixels; {facts['split']['leakage']:.0%} of the test pixels lie inside a training patch"
        + (f" or on ground that {begun_with(recipe)} have seen" if start else ""),
        highlight=False,
    )
    if facts["start"] is not None:
        for sentence in facts["start"]["sentences"]:
            console.print(f"[yellow]{sentence}[/yellow]", highlight=False)
    if facts["split"]["optimistic"]:
        console.print(
            "[yellow]this split is optimistic: expect lower accuracy on unseen ground[/yellow]"
        )


def _known_figures(folder: Path) -> tuple[float, int | None, int | None]:
    figures = runs.figures_of(folder)
    return figures.train_seconds, figures.parameters, figures.trainable


def _fit_estimator(
    name: str, recipe: Recipe, data: LabelledScene, split: Split, contract: BandContract
) -> Trained:
    settings = {**card(name).variants[name], **(recipe.model_args if name == recipe.model else {})}
    estimator: PixelEstimator = system_module(name).build(
        num_classes=len(data.class_names), contract=contract, seed=recipe.seed, **settings
    )
    started = time.perf_counter()
    pixels = split.without_validation().pixels(TRAIN)  # it has no epoch to choose
    blocks = split.blocks_of(pixels).of_pixel
    estimator.fit(estimator.features_at(data.scene, pixels), data.classes_at(pixels), blocks)
    return Trained(estimator, time.perf_counter() - started)


def _fit_network(
    recipe: Recipe,
    data: LabelledScene,
    split: Split,
    contract: BandContract,
    folder: Path,
    teacher: SceneTeacher | None,
    *,
    resume: bool,
    show: bool,
) -> Trained:
    """Train a network, and where asked for once more on the validation pixels as well.

    The second training is a fresh one for as many epochs as validated best, with a schedule of that length. Resumed, the
    first one ends with the same choice as before, because its state is kept until both are done.
    """
    chosen = _fit_once(recipe, data, split, contract, folder, teacher, resume=resume, show=show)
    if not recipe.refit or chosen.choice is None:
        return chosen
    again = recipe.model_copy(update={"epochs": chosen.choice.epoch, "patience": 0})
    (folder / REFIT).mkdir(exist_ok=True)
    trained = _fit_once(
        again,
        data,
        split.without_validation(),
        contract,
        folder / REFIT,
        teacher,
        resume=resume,
        show=show,
    )
    trained.seconds += chosen.seconds
    trained.choice = chosen.choice
    return trained


def _fit_once(
    recipe: Recipe,
    data: LabelledScene,
    split: Split,
    contract: BandContract,
    folder: Path,
    teacher: SceneTeacher | None,
    *,
    resume: bool,
    show: bool,
) -> Trained:
    from vitreous.tasks.fit import ClassifyTask
    from vitreous.tasks.loop import fit

    torch.manual_seed(recipe.seed)
    console = Console(stderr=True, quiet=not show)
    classifier, model_args = _make_classifier(recipe, data, split, contract, console)
    _freeze(classifier, recipe)
    parameters, trainable = runs.parameter_counts(classifier)
    task = ClassifyTask(
        classifier, _training_data(recipe, data, split, classifier, teacher), recipe
    )
    fit(task, folder, resume=resume, show=show)
    result, choice = task.result(), task.choice
    if choice is not None:
        console.print(
            f"kept the weights of epoch {choice.epoch} of {choice.epochs}: validation OA {choice.val_oa:.2%}",
            highlight=False,
        )
    return Trained(result, task.elapsed, parameters, trainable, model_args, choice)


def _drop_states(folder: Path) -> None:
    """Delete what an interrupted training would have gone on from."""
    for place in (folder, folder / REFIT):
        (place / STATE).unlink(missing_ok=True)


def _make_classifier(
    recipe: Recipe, data: LabelledScene, split: Split, contract: BandContract, console: Console
) -> tuple[runs.Network, dict[str, Any]]:
    """Return what is to be trained, and the arguments that rebuild its network."""
    settings = _settings(recipe)
    count = len(data.class_names)
    model_args = recipe.model_args
    if recipe.init is None:
        preprocess = _fit_preprocess(recipe, data, split, contract)
        net = runs.make_net(
            recipe.model, settings, bands=preprocess.channels, num_classes=count, **model_args
        )
    elif is_model_file(recipe.init):
        preprocess = _fit_preprocess(recipe, data, split, contract)
        # Components have no wavelengths; bands that are only scaled keep theirs.
        centres = contract.wavelengths if recipe.reduction == "none" else None
        bands = Bands(preprocess.channels, centres)
        net, model_args = _start_from_file(recipe, recipe.init, bands, settings, count, console)
    elif (Path(recipe.init) / PREPROCESS).is_file():
        preprocess = _pretrained_preprocess(recipe.init, data)
        net, model_args = _start_from_file(
            recipe, Path(recipe.init) / MODEL, None, settings, count, console
        )
    else:
        start, model_args = _start_from(recipe, data.scene, contract, settings)
        preprocess, net = start.preprocess, start.net
        if start.num_classes != count:
            net.reset_head(count)  # type: ignore[operator]
            reinstall(net, applied(net))  # the new head gets what the old one had
    if recipe.init is None and recipe.adapt != "scratch" and not recipe.adapts_later:
        console.print(
            f"[yellow]adapt '{recipe.adapt}' without --init: frozen parameters keep their random initial "
            "values[/yellow]",
            highlight=False,
        )
    net = _with_adapters(net, recipe)
    if recipe.reduce is not None:
        net = methods.apply(net, recipe.reduce, **recipe.reduce_args).model
    return runs.make_classifier(net, preprocess, contract, settings), model_args


def _with_adapters(net: torch.nn.Module, recipe: Recipe) -> torch.nn.Module:
    """Return the network with the adapters that the recipe trains; those that it has already are kept.

    Raises:
        ModelError: it has adapters of another method or with other settings, or the method cannot serve it.
    """
    method = recipe.adapt_method
    if method is None:
        return net
    noted = {card(entry["name"]).slug: entry["settings"] for entry in applied(net)}
    slug = card(method).slug
    if slug not in noted and not any(is_adapter(name, slug) for name, _ in net.named_parameters()):
        return methods.apply(net, method, **recipe.adapt_args).model
    own = noted.get(slug, {})  # an architecture with adapters of its own has noted none
    if any(key not in own or own[key] != value for key, value in recipe.adapt_args.items()):
        raise ModelError(
            f"The network already has '{method}' adapters; {recipe.adapt_args} would not change them.",
            "Omit --adapt-args, or start from a network without adapters.",
        )
    return net


def _freeze(classifier: runs.Network, recipe: Recipe) -> None:
    """Let only those parameters train that the recipe names from the beginning."""
    if recipe.adapt == "head_only":
        classifier.requires_grad_(False)
        classifier.net.get_submodule("head").requires_grad_(True)
    elif recipe.adapt_method is not None and not recipe.adapts_later:
        freeze_base(classifier, recipe.adapt_method, also_train="net.head.")
    hold_frozen(classifier)


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return the classifier's settings, as its checkpoint keeps them."""
    shared = {"mode": recipe.mode, "patch_size": recipe.patch_size, "padding": recipe.padding}
    if recipe.mode != "dense":
        return {**shared, "patch_norm": recipe.patch_norm}
    own = {"tile_size": recipe.tile_size, "decoder": recipe.decoder, "width": DECODER_WIDTH}
    return {**shared, **own}


def _start_from(
    recipe: Recipe, scene: xr.DataArray, contract: BandContract, settings: dict[str, Any]
) -> tuple[runs.Network, dict[str, Any]]:
    """Load the run that training starts from; its preprocessing comes along, because its weights expect it."""
    start = load_run(str(recipe.init))
    if not isinstance(start.classifier, runs.Network) or start.name != recipe.model:
        raise ModelError(
            f"The run {recipe.init} trained '{start.name}', not '{recipe.model}'.",
            f"Use --model {start.name}.",
        )
    if start.classifier.settings() != settings:
        raise ModelError(
            f"The run {recipe.init} was trained with {start.classifier.settings()}, not {settings}.",
            "Use the same settings.",
        )
    if recipe.model_args not in ({}, start.model_args):
        raise ModelError(
            f"The run {recipe.init} has the model arguments {start.model_args}, not {recipe.model_args}.",
            "Omit --model-args: they come with the weights.",
        )
    own = start.classifier.contract
    if (own.wavelengths, own.unit, len(own.used)) != (
        contract.wavelengths,
        contract.unit,
        len(contract.used),
    ):
        raise ModelError(
            f"The run {recipe.init} was trained on different bands or another unit.",
            "Start from a run on this sensor, or train from scratch.",
        )
    own.check_values(scene)
    if has(start.classifier.net, "quantize"):
        raise ModelError(
            f"The run {recipe.init} is quantized, and quantized weights cannot be trained.",
            "Start from the run that was quantized.",
        )
    # Loaded weights may be read-only views of the file; training needs its own.
    start.classifier.load_state_dict(
        {name: t.clone() for name, t in start.classifier.state_dict().items()}, assign=True
    )
    return start.classifier.requires_grad_(True), start.model_args


def _fit_preprocess(
    recipe: Recipe, data: LabelledScene, split: Split, contract: BandContract
) -> Preprocess:
    return Preprocess.fit(
        spectra_at(data.scene, contract.select(data.scene), split.pixels(TRAIN)),
        reduction=recipe.reduction,
        components=recipe.components,
        whiten=recipe.whiten,
        standardize=recipe.standardize,
    )


def _pretrained_preprocess(init: str, data: LabelledScene) -> Preprocess:
    """Return what a pre-trained network's input was scaled by, if the scene has the bands that it learned from."""
    from vitreous.tasks import pretrain

    start = pretrain.load_run(init)
    chosen, own = start.contract.select(data.scene), BandContract.of(data.scene)
    if list(chosen) != list(own.used):
        raise ModelError(
            f"The run {init} was pre-trained on bands other than the scene's {len(own.used)} good bands.",
            f"Adapt its weights to them: --init {Path(init) / MODEL} --reduction none.",
        )
    start.contract.check_values(data.scene)
    return start.preprocess


def _start_from_file(
    recipe: Recipe,
    file: str | Path,
    bands: Bands | None,
    settings: dict[str, Any],
    count: int,
    console: Console,
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Load a model file for some bands, or for its own, with a new head, and say what became of it."""
    net, report = load_model(
        file,
        bands=bands,
        num_classes=count,
        image_size=runs.image_size(settings),
        new_head=True,
    )
    made = report.made
    if made.name != recipe.model:
        raise ModelError(
            f"{recipe.init} holds '{made.name}', not '{recipe.model}'.", f"Use --model {made.name}."
        )
    if recipe.model_args not in ({}, made.model_args):
        raise ModelError(
            f"{recipe.init} has the model arguments {made.model_args}, not {recipe.model_args}.",
            "Omit --model-args: they come with the weights.",
        )
    console.print(f"starting from {report}", highlight=False, markup=False, soft_wrap=True)
    return runs.with_decoder(net, settings), made.model_args


def _training_data(
    recipe: Recipe,
    data: LabelledScene,
    split: Split,
    classifier: runs.Network,
    teacher: SceneTeacher | None,
) -> Any:
    from vitreous.tasks.fit import PARTS, TrainingData

    pixels = {role: split.pixels(role) for role in (TRAIN, VAL)}
    dense = isinstance(classifier, DenseClassifier)
    own_reach = classifier.radius if dense else classifier.margin
    reach = own_reach if teacher is None else max(own_reach, teacher.reach)
    around = np.concatenate(list(pixels.values()))
    cube = reduce_scene(
        data.scene,
        classifier.contract.select(data.scene),
        classifier.preprocess,
        around,
        reach=reach,
        padding=recipe.padding,
    )
    if teacher is not None:  # cut and turned with the student's own channels
        taught = teacher.cube(data.scene, around, reach=reach, padding=recipe.padding)
        cube = torch.cat([cube, taught])
    width = data.scene.sizes["x"]

    def regions(role: int) -> PixelRegions | None:
        if len(pixels[role]) == 0:
            return None
        classes = data.classes_at(pixels[role]) - 1
        if isinstance(classifier, DenseClassifier):
            side = classifier.tile_size - 2 * reach
            return TilePixels(
                cube, pixels[role], classes, width=width, half=0, margin=reach, side=side
            )
        shared = recipe.mode == "scene" and own_reach > classifier.radius
        most = recipe.batch_size * PARTS
        side = best_side(pixels[role], split.roles.shape, reach, most) if shared else 1
        return PixelRegions(
            cube,
            pixels[role],
            classes,
            width=width,
            half=classifier.radius,
            margin=reach,
            side=side,
        )

    train = regions(TRAIN)
    assert train is not None
    weights = class_weights(train.classes, len(data.class_names), recipe.class_weights)
    lesson = None if teacher is None else _lesson(recipe, data, classifier, teacher)
    return TrainingData(train, regions(VAL), classifier.preprocess.dark(), weights, lesson)


def _lesson(
    recipe: Recipe, data: LabelledScene, classifier: runs.Network, teacher: SceneTeacher
) -> Lesson:
    from vitreous.tasks.fit import Lesson

    distillation = _distillation(recipe)
    assert distillation is not None
    lift = teacher.lift(classifier, data.scene)
    return Lesson(teacher, distillation, teacher.dark(), lift)


def class_weights(classes: torch.Tensor, count: int, kind: str) -> torch.Tensor:
    """Return a weight per class: 1, or inverse (root) frequency; the mean over training pixels is 1."""
    frequency = torch.bincount(classes, minlength=count).clamp(min=1).float()
    power = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}[kind]
    weights = frequency**-power
    return weights / weights[classes].mean()


def _keep(
    folder: Path,
    recipe: Recipe,
    trained: Trained,
    data: LabelledScene,
    split: Split,
    start: Provenance,
) -> None:
    """Write what was trained; the weights last, because resuming takes them for the end of training."""
    config = read_json(folder / CONFIG)
    config["model"] = {
        "name": recipe.model,
        "parameters": trained.parameters,
        "trainable": trained.trainable,
        "train_seconds": trained.seconds,
        "chosen": None if trained.choice is None else asdict(trained.choice),
    }
    write_json(folder / CONFIG, config)
    size = max(receptive_size(trained.classifier), runs.teacher_size(folder))
    own = Seen.labels(Path(recipe.scene).name, Ground.of(data.scene), split, size)
    runs.save_run_model(
        folder,
        trained.classifier,
        name=recipe.model,
        model_args=trained.model_args,
        class_names=data.class_names,
        class_colors=data.class_colors,
        provenance=(*start, own),
        class_codes=data.class_codes,
    )


def _measure(
    folder: Path,
    recipe: Recipe,
    trained: Trained,
    data: LabelledScene,
    split: Split,
    start: Provenance,
    console: Console,
) -> None:
    """Map the scene, score it and the baselines on the test pixels, and write metrics and report."""
    row = _system_row(recipe.model, trained)
    if recipe.map:
        pixels = split.pixels(TEST)
        prediction = map_scene(folder, recipe, trained.classifier, data, console)
        row["pixels_per_second"] = prediction.pixels_per_second
        predicted = class_numbers(_read_map(folder / MAP, pixels), data.class_codes)
        row["test"] = score_pixels(data, split, pixels, predicted, data.class_names)
    else:
        row |= _test_figures(trained.classifier, data, split, data.class_names)
    if len(pixels := learned_from(recipe, split).pixels(VAL)):
        own = classify_pixels(trained.classifier, data.scene, pixels)
        row["val"] = score_pixels(data, split, pixels, own, data.class_names)
    rows = [row]
    for name in recipe.baselines:
        if name != recipe.model:
            console.print(f"baseline {name}", highlight=False)
            rows.append(_baseline(name, recipe, data, split, folder))
    size = max(receptive_size(trained.classifier), runs.teacher_size(folder))
    write_json(folder / METRICS, metrics_of(data, split, recipe, size, rows, start))
    if recipe.report:
        console.print("writing the report", highlight=False)
        build_report_of(TASK)(folder, data.scene, data.labels, split)


def _test_figures(
    classifier: runs.Network | PixelEstimator,
    data: LabelledScene,
    split: Split,
    class_names: list[str],
) -> dict[str, Any]:
    """Classify the test pixels alone, and return how fast that was and how right."""
    pixels = split.pixels(TEST)
    started = time.perf_counter()
    predicted = classify_pixels(classifier, data.scene, pixels)
    seconds = time.perf_counter() - started
    return {
        "pixels_per_second": len(pixels) / seconds,
        "test": score_pixels(data, split, pixels, predicted, class_names),
    }


def score_pixels(
    data: LabelledScene,
    split: Split,
    pixels: npt.NDArray[np.int64],
    predicted: npt.NDArray[np.int64],
    class_names: list[str],
) -> dict[str, Any]:
    """Measure predictions at flat pixel indices, with intervals that resample blocks of the scene."""
    return scores(data.classes_at(pixels), predicted, class_names, blocks=split.blocks_of(pixels))


def _system_row(name: str, trained: Trained) -> dict[str, Any]:
    return {
        "name": name,
        "kind": card(name).kind,
        "parameters": trained.parameters,
        "trainable": trained.trainable,
        "train_seconds": trained.seconds,
        "pixels_per_second": None,
        "val": None,
        "test": None,
    }


def map_scene(
    folder: Path,
    recipe: Recipe,
    classifier: runs.Network | PixelEstimator,
    data: LabelledScene,
    console: Console,
) -> Prediction:
    """Map the recipe's scene into a run folder, showing progress."""
    with progress_bar("mapping", console) as advance:
        return predict_scene(
            classifier,
            data.scene,
            folder / MAP,
            check_values=False,  # it is the scene that was trained on
            class_names=data.class_names,
            class_colors=data.class_colors,
            class_codes=data.class_codes,
            probabilities=folder / "probabilities.tif" if recipe.probabilities else None,
            progress=advance,
        )


def _read_map(path: Path, pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the map's values at flat pixel indices, reading it in strips."""
    import rasterio
    from rasterio.windows import Window

    found = np.zeros(len(pixels), dtype=np.int64)
    with no_georeference_warning(), rasterio.open(path, driver="GTiff") as file:
        rows = pixels // file.width
        for top in range(0, file.height, 512):
            inside = (rows >= top) & (rows < top + 512)
            if inside.any():
                strip = file.read(1, window=Window(0, top, file.width, min(512, file.height - top)))
                found[inside] = strip.ravel()[pixels[inside] - top * file.width]
    return found


def _baseline(
    name: str, recipe: Recipe, data: LabelledScene, split: Split, folder: Path
) -> dict[str, Any]:
    """Train another system on the same split and score it on the same pixels."""
    own = recipe.model_copy(
        update={
            "model": name,
            "model_args": {},
            "init": None,
            "adapt": "scratch",
            "adapt_args": {},
            "reduce": None,
            "reduce_args": {},
            "teacher": None,
            "distill": None,
            "distill_args": {},
            "devices": 1,  # the run's other processes have ended
        }
    )
    return fit_and_score(own, data, split, folder / "baselines" / name)[1]


def metrics_of(
    data: LabelledScene,
    split: Split,
    recipe: Recipe,
    patch_size: int,
    systems: list[dict[str, Any]],
    start: Provenance = (),
) -> dict[str, Any]:
    """Return what ``metrics.json`` holds: the classes, the split and the systems' rows.

    Args:
        data: the scene and its labels.
        split: who trained and who tests.
        recipe: the settings, which say who learned from the validation pixels (see :func:`learned_from`).
        patch_size: side of the square around a training pixel that is learned from.
        systems: the rows.
        start: the provenance of the weights that training started from; what they have seen of the test pixels counts
            as leakage.
    """
    entries = zip(data.class_codes, data.class_names, data.class_colors, strict=True)
    for system in systems:
        _put_codes(system, data.class_codes)
    ground = Ground.of(data.scene) if start else Ground("", *split.roles.shape)
    begun, seen = start_leakage(start, split.pixels(TEST), ground, begun_with(recipe))
    used = learned_from(recipe, split)
    return {
        "schema": 1,
        "classes": [{"value": code, "name": name, "color": color} for code, name, color in entries],
        "split": {
            "method": split.method,
            "params": split.params,
            "seed": split.seed,
            "hash": split.hash,
            "optimistic": used.optimistic or begun.share > 0,
            "leakage": split_leakage(used, patch_size, seen),
            "patch_size": patch_size,
            "counts": split.counts,
        },
        "start": {**begun.to_json(), "split_leakage": used.leakage(patch_size)} if start else None,
        "systems": systems,
    }


def begun_with(recipe: Recipe) -> str:
    """Return, in words, whose knowledge a training begins with."""
    parts = {"the initial weights": recipe.init, "the weights of the teacher": recipe.teacher}
    return " and ".join(name for name, given in parts.items() if given) or "the initial weights"


def _put_codes(system: dict[str, Any], codes: list[int]) -> None:
    """Let the rows of a system's classes carry the label file's own numbers."""
    for figures in (system.get("val"), system.get("test")):
        for row, code in zip(figures["per_class"] if figures else [], codes, strict=False):
            row["value"] = code
