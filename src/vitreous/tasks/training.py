"""Training a system on labelled pixels: what it starts from, what it is trained on, and the steps until it is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from rich.console import Console

from vitreous.catalog.registry import card, system_module
from vitreous.checkpoints import classifiers
from vitreous.checkpoints.model_files import is_model_file, load_model
from vitreous.data.blocks import TRAIN, VAL
from vitreous.data.contract import BandContract
from vitreous.data.packed import PackedImage
from vitreous.data.regions import (
    Cube,
    LabelledArea,
    PixelRegions,
    ReducedScene,
    Stacked,
    best_side,
    reduce_scene,
)
from vitreous.data.roles import Splits
from vitreous.data.spectral_augment import SpectralAugment
from vitreous.data.tiles import TilePixels
from vitreous.errors import ConfigError, ModelError
from vitreous.inference.dense_classifier import DenseClassifier
from vitreous.inference.postprocess import Postprocess, finished
from vitreous.inference.windows import SceneClassifier
from vitreous.layers.bands import Bands
from vitreous.layers.frozen import hold_frozen
from vitreous.layers.preprocess import Preprocess, noise_fractions
from vitreous.methods import _apply as methods
from vitreous.methods._apply import applied, has, reinstall
from vitreous.methods.adapt._freeze import freeze_base, is_adapter
from vitreous.models._pixel_estimator import PixelEstimator
from vitreous.recipe import Recipe
from vitreous.tasks import runs
from vitreous.tasks.division import neighbouring_spectra, training_spectra, unlabelled_spectra
from vitreous.tasks.labelled import LabelledScenes
from vitreous.tasks.runs import MODEL, PREPROCESS, STATE, load_run

if TYPE_CHECKING:
    from vitreous.tasks.fit import Choice, Lesson, TrainingData
    from vitreous.tasks.teacher import Distillation, SceneTeacher

REFIT = "refit"  # folder of the second training, within the run's
DECODER_WIDTH = 64  # of mode dense
PREPROCESS_PIXELS = 2**20  # training pixels that the preprocessing is fitted on, at most
BACKGROUND_PIXELS = 2**12  # unlabelled pixels that training pixels are mixed with, at most
ESTIMATOR_PIXELS = 2**20  # training pixels that are read for an estimator, at most
HELD_BYTES = (
    2**31
)  # of reduced channels of all training scenes in memory; of more, windows are read as needed


# Minimum noise fractions that were found, by the data that they are of.
_FRACTIONS: WeakKeyDictionary[LabelledScenes, dict[Any, npt.NDArray[np.float64]]] = (
    WeakKeyDictionary()
)


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
        postprocess: what becomes of its probabilities; nothing where None.
        name: of the system, where a comparison has chosen it.
        title: what it is called beside others, likewise.
    """

    classifier: classifiers.Classifier
    seconds: float
    parameters: int | None = None
    trainable: int | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    choice: Choice | None = None
    postprocess: Postprocess | None = None
    name: str = ""
    title: str = ""

    @property
    def finished(self) -> SceneClassifier:
        """The classifier with what becomes of its probabilities."""
        return finished(self.classifier, self.postprocess)

    @property
    def unrefined(self) -> Trained | None:
        """The same without its refinement; None where there is none."""
        if self.postprocess is None or self.postprocess.refine is None:
            return None
        return replace(self, postprocess=self.postprocess.refined(None))


def fit_estimator(
    name: str, recipe: Recipe, data: LabelledScenes, splits: Splits, contract: BandContract
) -> Trained:
    """Train a classical estimator on training and validation pixels."""
    settings = {**card(name).variants[name], **(recipe.model_args if name == recipe.model else {})}
    estimator: PixelEstimator = system_module(name).build(
        num_classes=len(data.class_names), contract=contract, seed=recipe.seed, **settings
    )
    started = time.perf_counter()
    every = splits.without_validation()  # it has no epoch to choose
    own = recipe.model_copy(update={"model": name})
    if own.spectra != "none" or reduction_of(own, len(data.contract.used)) != "none":
        estimator.preprocess = fit_preprocess(own, data, every)
    features, classes = [], []
    blocks: list[npt.NDArray[np.int64]] = []
    for k, pixels in every.some(TRAIN, ESTIMATOR_PIXELS):
        features.append(estimator.features_at(data[k].scene, pixels))
        classes.append(data[k].classes_at(pixels))
        numbers = every[k].blocks_of(pixels).of_pixel
        blocks.append(numbers + (int(blocks[-1].max()) + 1 if blocks else 0))
    estimator.fit(np.concatenate(features), np.concatenate(classes), np.concatenate(blocks))
    return Trained(estimator, time.perf_counter() - started)


def fit_system(
    recipe: Recipe,
    data: LabelledScenes,
    splits: Splits,
    contract: BandContract,
    folder: Path,
    teacher: SceneTeacher | None = None,
    *,
    resume: bool,
    show: bool,
) -> Trained:
    """Train the system of a recipe, a network or an estimator.

    Args:
        recipe: the settings.
        data: the scenes and their labels.
        splits: who trains.
        contract: the bands.
        folder: keeps the state while a network trains.
        teacher: what a network learns from beside the labels.
        resume: go on with what the folder keeps.
        show: print progress.
    """
    if not runs.is_network(recipe.model):
        return fit_estimator(recipe.model, recipe, data, splits, contract)
    folder.mkdir(parents=True, exist_ok=True)
    return fit_network(recipe, data, splits, contract, folder, teacher, resume=resume, show=show)


def fit_network(
    recipe: Recipe,
    data: LabelledScenes,
    splits: Splits,
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
    chosen = _fit_once(recipe, data, splits, contract, folder, teacher, resume=resume, show=show)
    if not recipe.refit or chosen.choice is None:
        return chosen
    again = recipe.model_copy(update={"epochs": chosen.choice.epoch, "patience": 0})
    (folder / REFIT).mkdir(exist_ok=True)
    trained = _fit_once(
        again,
        data,
        splits.without_validation(),
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
    data: LabelledScenes,
    splits: Splits,
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
    classifier, model_args = _make_classifier(recipe, data, splits, contract, console)
    _freeze(classifier, recipe)
    parameters, trainable = runs.parameter_counts(classifier)
    learned = training_data(recipe, data, splits, classifier, teacher)
    task = ClassifyTask(classifier, learned, recipe)
    fit(task, folder, resume=resume, show=show)
    result, choice = task.result(), task.choice
    if choice is not None:
        console.print(
            f"kept the weights of epoch {choice.epoch} of {choice.epochs}: validation OA {choice.val_oa:.2%}",
            highlight=False,
        )
    return Trained(result, task.elapsed, parameters, trainable, model_args, choice)


def train_further(
    recipe: Recipe,
    data: LabelledScenes,
    splits: Splits,
    classifier: classifiers.Network,
    folder: Path,
    *,
    show: bool,
) -> classifiers.Network:
    """Train a network on as it is, and return it with the weights to use.

    Args:
        recipe: the settings of this training.
        data: the scenes and their labels.
        splits: who trains.
        classifier: changed in place.
        folder: for the state while it trains.
        show: print progress.
    """
    from vitreous.tasks.fit import ClassifyTask
    from vitreous.tasks.loop import fit

    torch.manual_seed(recipe.seed)
    own_weights(classifier)
    task = ClassifyTask(classifier, training_data(recipe, data, splits, classifier, None), recipe)
    fit(task, folder, resume=False, show=show)
    return task.result()


def own_weights(model: torch.nn.Module) -> None:
    """Let a loaded model be trained: its weights may be read-only views of the file."""
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(own, assign=True)
    model.requires_grad_(True).train()


def drop_states(folder: Path) -> None:
    """Delete what an interrupted training would have gone on from."""
    for place in (folder, folder / REFIT):
        (place / STATE).unlink(missing_ok=True)


def _make_classifier(
    recipe: Recipe, data: LabelledScenes, splits: Splits, contract: BandContract, console: Console
) -> tuple[classifiers.Network, dict[str, Any]]:
    """Return what is to be trained, and the arguments that rebuild its network."""
    settings = classifier_settings(recipe)
    count = len(data.class_names)
    model_args = recipe.model_args
    if recipe.init is None:
        preprocess = fit_preprocess(recipe, data, splits)
        bands = input_bands(recipe, contract, preprocess)
        net = classifiers.make_net(
            recipe.model, settings, bands=bands, num_classes=count, **model_args
        )
    elif is_model_file(recipe.init):
        preprocess = fit_preprocess(recipe, data, splits)
        bands = input_bands(recipe, contract, preprocess)
        net, model_args = _start_from_file(recipe, recipe.init, bands, settings, count, console)
    elif (Path(recipe.init) / PREPROCESS).is_file():
        preprocess = _pretrained_preprocess(recipe.init, data)
        net, model_args = _start_from_file(
            recipe, Path(recipe.init) / MODEL, None, settings, count, console
        )
    else:
        start, model_args = _start_from(recipe, data[0].scene, contract, settings)
        preprocess, net = start.preprocess, start.net
        if start.num_classes != count:
            net.reset_head(count)  # type: ignore[operator]
            reinstall(net, applied(net))  # the new head gets what the old one had
    if recipe.spectra not in {"none", preprocess.spectra.kind}:
        raise ModelError(
            f"{recipe.init} was trained with spectra '{preprocess.spectra.kind}', not '{recipe.spectra}'.",
            "Omit --spectra: preprocessing comes with the weights.",
        )
    if recipe.init is None and recipe.adapt != "scratch" and not recipe.adapts_later:
        console.print(
            f"[yellow]adapt '{recipe.adapt}' without --init: frozen parameters keep their random initial "
            "values[/yellow]",
            highlight=False,
        )
    net = _with_adapters(net, recipe)
    if recipe.reduce is not None:
        net = methods.apply(net, recipe.reduce, **recipe.reduce_args).model
    return classifiers.make_classifier(net, preprocess, contract, settings), model_args


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


def _freeze(classifier: classifiers.Network, recipe: Recipe) -> None:
    """Let only those parameters train that the recipe names from the beginning."""
    if recipe.adapt == "head_only":
        classifier.requires_grad_(False)
        classifier.net.get_submodule("head").requires_grad_(True)
    elif recipe.adapt_method is not None and not recipe.adapts_later:
        freeze_base(classifier, recipe.adapt_method, also_train="net.head.")
    hold_frozen(classifier)


def classifier_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the classifier's settings, as its checkpoint keeps them."""
    shared = {"mode": recipe.mode, "patch_size": recipe.patch_size, "padding": recipe.padding}
    if recipe.mode != "dense":
        return {**shared, "patch_norm": recipe.patch_norm}
    own = {"tile_size": recipe.tile_size, "decoder": recipe.decoder, "width": DECODER_WIDTH}
    return {**shared, **own}


def _start_from(
    recipe: Recipe, scene: xr.DataArray, contract: BandContract, settings: dict[str, Any]
) -> tuple[classifiers.Network, dict[str, Any]]:
    """Load the run that training starts from; its preprocessing comes along, because its weights expect it."""
    start = load_run(str(recipe.init))
    if not isinstance(start.classifier, classifiers.Network) or start.name != recipe.model:
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
    own_weights(start.classifier)
    return start.classifier, start.model_args


def reduction_of(recipe: Recipe, bands: int) -> str:
    """Return how the bands are reduced: as the recipe says, or as suits the way in which its network reads them.

    A network that takes any channels gets principal components; one that reads the bands themselves gets those, unless
    its authors reduce them too, or there are more than it can read one by one (``vitreous.catalog.card.Card.input``).
    An estimator gets the bands.

    Args:
        recipe: the settings.
        bands: how many bands the scene has.

    Returns:
        ``pca``, ``mnf`` or ``none``.
    """
    if recipe.reduction != "auto":
        return recipe.reduction
    if not runs.is_network(recipe.model):
        return "none"
    entry = card(recipe.model)
    if entry.input == "channels" or "components" in entry.recipe:
        return "pca"
    return "none" if entry.most_bands is None or bands <= entry.most_bands else "pca"


def input_bands(recipe: Recipe, contract: BandContract, preprocess: Preprocess) -> Bands:
    """Describe the channels of a network's input: components have no wavelengths, bands that are only scaled do."""
    if reduction_of(recipe, len(contract.used)) == "none":
        return contract.spectrum
    return Bands(preprocess.channels)


def fit_preprocess(recipe: Recipe, data: LabelledScenes, splits: Splits) -> Preprocess:
    """Fit on training pixels what a recipe does to spectra before its model sees them."""
    reduction = reduction_of(recipe, len(data.contract.used))
    return Preprocess.fit(
        training_spectra(data, splits, PREPROCESS_PIXELS),
        spectra=recipe.spectra,
        wavelengths=data.contract.wavelengths,
        reduction=reduction,
        components=recipe.components,
        whiten=recipe.whiten,
        standardize=recipe.standardize,
        fractions=_fractions(recipe, data, splits) if reduction == "mnf" else None,
    )


def _fractions(recipe: Recipe, data: LabelledScenes, splits: Splits) -> npt.NDArray[np.float64]:
    """Return the minimum noise fractions of the training scenes, which no fold of a comparison changes."""
    known = _FRACTIONS.setdefault(data, {})
    key = (recipe.spectra, recipe.components, recipe.whiten, *splits.scenes_with(TRAIN))
    if key not in known:
        known[key] = noise_fractions(
            neighbouring_spectra(data, splits),
            spectra=recipe.spectra,
            wavelengths=data.contract.wavelengths,
            components=recipe.components,
            whiten=recipe.whiten,
        )
    return known[key]


def _pretrained_preprocess(init: str, data: LabelledScenes) -> Preprocess:
    """Return what a pre-trained network's input was scaled by, if the scene has the bands that it learned from."""
    from vitreous.tasks import pretrain

    start = pretrain.load_run(init)
    chosen, own = start.contract.select(data[0].scene), data.contract
    if list(chosen) != list(own.used):
        raise ModelError(
            f"The run {init} was pre-trained on bands other than the scene's {len(own.used)} good bands.",
            f"Adapt its weights to them: --init {Path(init) / MODEL} --reduction none.",
        )
    start.contract.check_values(data[0].scene)
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
        image_size=classifiers.image_size(settings),
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
    return classifiers.with_decoder(net, settings), made.model_args


def distillation_of(recipe: Recipe) -> Distillation | None:
    """Return how the recipe's network learns from a teacher, None where it has none."""
    if recipe.distill is None or not runs.is_network(recipe.model):
        return None
    from vitreous.tasks.teacher import Distillation

    return Distillation.of(recipe.distill, recipe.distill_args)


def training_data(
    recipe: Recipe,
    data: LabelledScenes,
    splits: Splits,
    classifier: classifiers.Network,
    teacher: SceneTeacher | None = None,
) -> TrainingData:
    """Return what a network learns from and is validated on.

    The reduced channels of all scenes are held in memory as far as they fit (``HELD_BYTES``); else windows are read and
    reduced when they are needed, so that memory does not grow with the number of scenes.
    """
    from vitreous.tasks.fit import PARTS, TrainingData

    dense = isinstance(classifier, DenseClassifier)
    own_reach = classifier.radius if dense else classifier.margin
    reach = own_reach if teacher is None else max(own_reach, teacher.reach)
    areas: dict[int, list[LabelledArea]] = {TRAIN: [], VAL: []}
    wanted = sorted({*splits.scenes_with(TRAIN), *splits.scenes_with(VAL)})
    pixels = sum(int(np.prod([side + 2 * reach for side in data.shapes[k]])) for k in wanted)
    readers = [classifier] if teacher is None else [classifier, teacher.classifier]
    channels = sum(reader.preprocess.channels for reader in readers)
    held = pixels * channels * 4 <= HELD_BYTES
    for k in wanted:
        roles, labels = splits[k].roles, np.asarray(data[k].labels.values)
        taking = (roles == TRAIN) | (roles == VAL)
        # A teacher's channels are cut and turned with the student's own.
        cubes = [_cube(data, k, reader, taking, reach, recipe.padding, held) for reader in readers]
        cube = cubes[0] if len(cubes) == 1 else Stacked(cubes)
        for role, found in areas.items():
            if (roles == role).any():
                found.append(LabelledArea(cube, PackedImage(np.where(roles == role, labels, 0))))

    def regions(own: list[LabelledArea]) -> PixelRegions | None:
        if not own:
            return None
        if isinstance(classifier, DenseClassifier):
            return TilePixels(own, margin=reach, side=classifier.tile_size - 2 * reach)
        shared = recipe.mode == "scene" and own_reach > classifier.radius
        most = recipe.batch_size * PARTS
        side = best_side([area.classes for area in own], reach, most) if shared else 1
        return PixelRegions(own, half=classifier.radius, margin=reach, side=side)

    train = regions(areas[TRAIN])
    assert train is not None
    images = [area.classes for area in train.areas]
    weights = class_weights(images, len(data.class_names), recipe.class_weights)
    lesson = None if teacher is None else _lesson(recipe, data, splits, classifier, teacher, train)
    return TrainingData(
        train,
        regions(areas[VAL]),
        classifier.preprocess.dark(),
        weights,
        _augmentation(recipe, data, splits, classifier),
        lesson,
    )


def _augmentation(
    recipe: Recipe, data: LabelledScenes, splits: Splits, classifier: classifiers.Network
) -> SpectralAugment:
    """Return how the spectra of training pixels are changed.

    Raises:
        ConfigError: they are to be mixed with unlabelled pixels, and there are none.
    """
    unlabelled = None
    if recipe.background:
        spectra = unlabelled_spectra(data, splits, BACKGROUND_PIXELS)
        if not len(spectra):
            raise ConfigError(
                "background mixes training pixels with unlabelled ones, and every pixel of the scene is labelled.",
                "Omit --background.",
            )
        with torch.no_grad():
            channels = classifier.preprocess(torch.from_numpy(spectra)[:, :, None, None])
        unlabelled = channels.flatten(1)
    return SpectralAugment(
        classifier.preprocess,
        offset=recipe.offset,
        background=recipe.background,
        missing=recipe.band_dropout,
        noise=recipe.noise,
        unlabelled=unlabelled,
    )


# Settings that decide which pixels a student sees, and how they are changed.
_OF_THE_PIXELS = (
    *("seed", "devices", "batch_size", "passes", "flips", "mixup"),
    *("gain", "offset", "background", "band_dropout", "noise"),
    *("mode", "patch_size", "tile_size", "padding"),
    *("spectra", "reduction", "components", "whiten", "standardize"),
)


def _lesson(
    recipe: Recipe,
    data: LabelledScenes,
    splits: Splits,
    classifier: classifiers.Network,
    teacher: SceneTeacher,
    train: PixelRegions,
) -> Lesson:
    from vitreous.tasks.answers_store import AnswerStore
    from vitreous.tasks.fit import Lesson

    distillation = distillation_of(recipe)
    assert distillation is not None
    lift = teacher.lift(classifier, data.first)
    store = None
    if recipe.teacher_store is not None:
        if distillation.reads_levels:
            raise ConfigError(
                f"'{distillation.method}' reads feature levels, which are not kept.",
                "Omit --teacher-store.",
            )
        key = {
            "teacher": teacher.hash,
            "data": data.fingerprints,
            "split": splits.hash,
            "channels": classifier.preprocess.channels,
            "regions": [train.half, train.margin, train.side],
            **{name: getattr(recipe, name) for name in _OF_THE_PIXELS},
        }
        store = AnswerStore(Path(recipe.teacher_store), key, recipe.teacher_top)
    return Lesson(teacher, distillation, teacher.dark(), lift, store)


def _cube(
    data: LabelledScenes,
    index: int,
    classifier: classifiers.Network,
    taking: npt.NDArray[np.bool_],
    reach: int,
    padding: str,
    held: bool,
) -> Cube:
    """Return the reduced channels of a scene, in memory or read when they are needed."""
    scene = data[index].scene
    bands = classifier.contract.select(scene)
    if held:
        return reduce_scene(
            scene,
            bands,
            classifier.preprocess,
            np.flatnonzero(taking),
            reach=reach,
            padding=padding,
        )

    def opened() -> xr.DataArray:
        return data[index].scene

    return ReducedScene(opened, bands, classifier.preprocess, PackedImage(taking), reach, padding)


def class_weights(
    classes: torch.Tensor | Sequence[PackedImage], count: int, kind: str
) -> torch.Tensor:
    """Return a weight per class: 1, or inverse (root) frequency; the mean over training pixels is 1.

    Args:
        classes: of the training pixels, from 0 on; or images of several scenes, from 1 on and 0 elsewhere.
        count: how many classes there are.
        kind: ``none``, ``sqrt`` or ``balanced``.
    """
    parts = [classes] if isinstance(classes, torch.Tensor) else classes
    sizes = torch.stack([torch.bincount(_numbers(part), minlength=count) for part in parts])
    power = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}[kind]
    weights = sizes.sum(0).clamp(min=1).float() ** -power
    means = torch.stack([weights[_numbers(part)].mean() for part in parts])
    shares = sizes.sum(1) / sizes.sum()
    return weights / (means * shares).sum()


def _numbers(classes: torch.Tensor | PackedImage) -> torch.Tensor:
    """Return class numbers from 0 on."""
    if isinstance(classes, torch.Tensor):
        return classes
    values = classes.whole()
    return torch.from_numpy(values[values > 0].astype(np.int64) - 1)
