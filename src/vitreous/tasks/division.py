"""Which labelled pixels of a run train, validate and test: drawn as its recipe says, and kept with the run."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from vitreous.catalog.registry import card, system_module
from vitreous.data.blocks import TEST, TRAIN
from vitreous.data.contract import BandContract
from vitreous.data.overlap import groups
from vitreous.data.pixels import spectra_at, spread_pairs
from vitreous.data.roles import UNUSED, Split, Splits
from vitreous.data.scene_split import PIXEL_CAP, divide_scenes, split_scenes, warn_untested
from vitreous.data.splits import part_shares
from vitreous.errors import SplitError, VitreousError
from vitreous.inference.postprocess import DEFAULT_REFINEMENT, Refinement, make_refinement
from vitreous.recipe import Recipe
from vitreous.scenes.cube import read_window
from vitreous.tasks import runs
from vitreous.tasks.checks import Context, explained
from vitreous.tasks.labelled import LabelledScene, LabelledScenes, open_data

if TYPE_CHECKING:
    from vitreous.tasks.teacher import SceneTeacher

WIDEST = 21  # side of the square of pixels that a candidate of a comparison may depend on
PAIR_SCENES, PAIR_WINDOWS = (
    16,
    8,
)  # of neighbouring pixels: scenes at most, and windows along each side of one
LEVEL_PIXELS = 20_000  # training pixels that tell how bright they all are


def draw_split(recipe: Recipe, data: LabelledScene) -> Split:
    """Divide the labelled pixels of a single scene; see :func:`draw_splits`."""
    return draw_splits(recipe, LabelledScenes.of(data))[0]


def draw_splits(recipe: Recipe, data: LabelledScenes) -> Splits:
    """Divide the labelled pixels as the recipe says, leaving out pixels without a valid measurement.

    Raises:
        VitreousError: the labels cannot be divided so, or no pixel is left to train or to test.
    """
    context = widest_context(recipe)
    size = context.size
    if recipe.chosen:  # its folds do what validation pixels are for
        recipe = recipe.model_copy(update={"val_fraction": 0.0})
    try:
        splits = (
            _by_scene(recipe, data, size)
            if recipe.split == "scenes"
            else _each_by_itself(recipe, data, size)
        )
    except SplitError as error:
        raise explained(error, recipe, context) from error
    if recipe.chosen:  # those of a table of scenes
        splits = splits.without_validation()
    for role, name in ((TRAIN, "training"), (TEST, "test")):
        if not splits.scenes_with(role):
            raise VitreousError(
                f"No {name} pixel has valid data.",
                "Check the scene's no-data value, or change the split.",
            )
    return splits


def _each_by_itself(recipe: Recipe, data: LabelledScenes, size: int) -> Splits:
    lost = _Lost(len(data.class_names), masked="mask" in recipe.scene_hints)
    usable = []
    for scene in data:
        labels = np.asarray(scene.labels.values)
        usable.append(_valid_pixels(scene.scene, data.contract, labels > 0))
        lost.add(labels, labels > 0, usable[-1])
    lost.tell()  # before the division, which may find no way to divide what is left
    drawn = [
        scene.labelled_where(valid).split(recipe, size)
        for scene, valid in zip(data, usable, strict=True)
    ]
    first = drawn[0]
    params = first.params
    if len(drawn) > 1:  # what the method reports is of single scenes
        reported = ("classes_without_test", "buffer_pixels")
        params = {name: value for name, value in params.items() if name not in reported}
    return Splits((split.roles for split in drawn), first.method, params, first.seed)


def _by_scene(recipe: Recipe, data: LabelledScenes, size: int) -> Splits:
    """Give whole scenes their roles: those of the table, or drawn."""
    counts = data.counts
    roles = [entry.role for entry in data.entries]
    given = [role for role in roles if role is not None]
    if len(given) < len(roles):
        shares = part_shares(recipe.train_fraction, recipe.val_fraction)
        given = divide_scenes(counts, groups(data.grounds()), shares, recipe.seed)
    per_class = recipe.train_per_class
    by_patches = recipe.chosen or (recipe.mode != "dense" and runs.is_network(recipe.model))
    if per_class is None and by_patches:
        per_class = PIXEL_CAP
    params = {"patch_size": size, "roles_given": None not in roles}
    splits = split_scenes(
        lambda k: np.asarray(data[k].labels.values),
        counts,
        given,
        per_class=per_class,
        seed=recipe.seed,
        params=params,
    )
    warn_untested(splits, data.class_names)
    return _measured(splits, data, masked="mask" in recipe.scene_hints)


def _measured(splits: Splits, data: LabelledScenes, *, masked: bool) -> Splits:
    """Leave out pixels of divided scenes without a valid measurement, or masked; see :class:`_Lost`.

    Raises:
        VitreousError: fewer than two classes are left.
    """
    parts, lost = [], _Lost(len(data.class_names), masked=masked)
    for scene, split in zip(data, splits, strict=True):
        usable = _valid_pixels(scene.scene, data.contract, split.roles > 0)
        lost.add(np.asarray(scene.labels.values), split.roles > 0, usable)
        parts.append(np.where(usable, split.roles, UNUSED).astype(np.uint8))
    lost.tell()
    return Splits(parts, splits.method, splits.params, splits.seed) if lost.pixels else splits


class _Lost:
    """How many labelled pixels have no valid measurement, and which classes are lost with them.

    Args:
        num_classes: how many classes there are.
        masked: whether a mask hides pixels, too.
    """

    def __init__(self, num_classes: int, *, masked: bool) -> None:
        self.before, self.after = (np.zeros(num_classes + 1, dtype=np.int64) for _ in range(2))
        self.masked = masked

    def add(
        self,
        labels: npt.NDArray[np.integer[Any]],
        asked: npt.NDArray[np.bool_],
        usable: npt.NDArray[np.bool_],
    ) -> None:
        """Count the pixels of a scene that are ``asked`` for, all ``(height, width)``."""
        count = len(self.before)
        self.before += np.bincount(labels[asked], minlength=count)
        self.after += np.bincount(labels[asked & usable], minlength=count)

    @property
    def pixels(self) -> int:
        """How many are lost."""
        return int(self.before.sum() - self.after.sum())

    def tell(self) -> None:
        """Say in one line what is lost, if anything is.

        Raises:
            VitreousError: fewer than two classes are left.
        """
        if not self.pixels:
            return
        why = "are masked or have no valid data" if self.masked else "have no valid data"
        left, given = int((self.after > 0).sum()), int((self.before > 0).sum())
        words = (
            f"{self.pixels:,} of {self.before.sum():,} labelled pixels {why}; {left} of {given} classes"
            " remain"
        )
        advice = "Check the scene's no-data value, mask and bands with 'vitreous info'."
        if not left:
            raise VitreousError(
                f"No training pixel has valid data: all {self.pixels:,} labelled pixels {why}.",
                advice,
            )
        if left < min(given, 2):
            raise VitreousError(f"{words}, and a classifier needs at least two.", advice)
        warnings.warn(f"{words}.", stacklevel=5)


def _valid_pixels(
    scene: xr.DataArray, contract: BandContract, asked: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Return ``(height, width)``: False where a pixel that is ``asked`` for has no valid measurement."""
    bands = contract.select(scene)
    valid = np.ones(asked.shape, dtype=bool)
    width = asked.shape[1]
    strip = max(1, 2**24 // (len(bands) * width))
    for top in range(0, len(valid), strip):
        rows = slice(top, min(top + strip, len(valid)))
        if asked[rows].any():
            found = np.isfinite(read_window(scene, rows, slice(0, width), bands)[0])
            valid[rows] = found | ~asked[rows]
    return valid


def fitting(splits: Splits, data: LabelledScenes) -> Splits:
    """Return saved splits, if they were made for labels of these sizes.

    Raises:
        VitreousError: they were made for others.
    """
    if splits.shapes != data.shapes:
        raise VitreousError(
            f"The run's split was made for {_sizes(splits.shapes)} pixels; the labels now have {_sizes(data.shapes)}.",
            "Restore the scene and labels that it was trained on.",
        )
    return splits


def test_scene(run: runs.Run) -> tuple[LabelledScene, Split]:
    """Open a scene that a run was tested on, of several the first, with its labels and its split."""
    data = open_data(run.recipe, again=True)
    splits = fitting(run.splits, data)
    index = splits.scenes_with(TEST)[0]
    return data[index], splits[index]


test_scene.__test__ = False  # type: ignore[attr-defined]  # for pytest, which takes the name for its own


def _sizes(shapes: list[tuple[int, int]]) -> str:
    return str(shapes[0]) if len(shapes) == 1 else f"{len(shapes)} scenes of {shapes[0]} and other"


def measured_contract(data: LabelledScenes, splits: Splits) -> BandContract:
    """Return the bands and unit of the scenes, and how bright the training pixels are."""
    return data.contract.measured(training_spectra(data, splits, LEVEL_PIXELS))


def training_spectra(data: LabelledScenes, splits: Splits, most: int) -> npt.NDArray[np.float32]:
    """Return physical values of training pixels, evenly chosen where there are more than ``most``: ``(n, bands)``."""
    found = []
    for k, pixels in splits.some(TRAIN, most):
        scene = data[k].scene
        found.append(spectra_at(scene, data.contract.select(scene), pixels))
    return np.concatenate(found)


def neighbouring_spectra(data: LabelledScenes, splits: Splits) -> npt.NDArray[np.float32]:
    """Return physical values of neighbouring pixels all over the training scenes, whether labelled or not.

    Returns:
        ``(pairs, 2, bands)``.
    """
    chosen = _some_training_scenes(splits)
    count = max(1, round(PAIR_WINDOWS / len(chosen) ** 0.5))
    return np.concatenate(
        [
            spread_pairs(data[k].scene, data.contract.select(data[k].scene), count=count)
            for k in chosen
        ]
    )


def _some_training_scenes(splits: Splits) -> list[int]:
    """Return numbers of training scenes, evenly chosen where there are many."""
    chosen = splits.scenes_with(TRAIN)
    return list(chosen[:: -(-len(chosen) // PAIR_SCENES)])


def unlabelled_spectra(data: LabelledScenes, splits: Splits, most: int) -> npt.NDArray[np.float32]:
    """Return physical values of valid pixels without a label, evenly chosen from the training scenes: ``(n, bands)``.

    Args:
        data: the scenes and their labels.
        splits: who trains.
        most: pixels at most.
    """
    chosen = _some_training_scenes(splits)
    found = []
    for k in chosen:
        free = (np.asarray(data[k].labels.values) == 0) & (splits[k].roles == UNUSED)
        pixels = np.flatnonzero(free)
        pixels = pixels[:: max(1, -(-len(pixels) * len(chosen) // most))]
        found.append(spectra_at(data[k].scene, data.contract.select(data[k].scene), pixels))
    spectra = np.concatenate(found)
    return spectra[np.isfinite(spectra).all(1)]


def recipe_receptive_size(recipe: Recipe) -> int:
    """Return the side of the square of pixels that one prediction depends on; see :func:`widest_context`."""
    return widest_context(recipe).size


def widest_context(recipe: Recipe) -> Context:
    """Return the widest square of pixels that a prediction depends on.

    A recipe's model or its teacher looks at it, and a refinement around it; its baselines are measured on the same pixels,
    so that the widest counts. Of a comparison each candidate counts with its refinement, which is made as narrow as
    :data:`WIDEST` asks where the user has not set it.
    """
    if recipe.chosen:
        found = _contexts_of_candidates(recipe)
    else:
        around = 2 * max(0 if one is None else one.reach for one in recipe_refinements(recipe))
        found = [_context_of(recipe, recipe.model, around)]
        teacher = open_teacher(recipe)
        if teacher is not None:
            size = teacher.classifier.receptive_size + around
            found.append(Context(size, "the teacher", "another --teacher"))
    found += [_context_of(recipe, name, 0) for name in recipe.baselines]
    return max(found, key=lambda one: one.size)


def _contexts_of_candidates(recipe: Recipe) -> list[Context]:
    from vitreous.tasks.candidates import chosen_candidates, refinement_for

    found = []
    for one in chosen_candidates(recipe):
        settings = one.recipe(recipe)
        own = own_size(settings, settings.model)
        refinement = refinement_for(one, recipe, WIDEST)
        around = 0 if refinement is None else 2 * refinement.reach
        parts = f" ({own} x {own}) with a refinement" if around else ""
        found.append((own, Context(own + around, f"'{one.name}'{parts}, which 'auto' compares")))
    alone = "--refine none" if max(own for own, _ in found) == 1 else "--model svm"
    others = (
        " --baselines ''" if any(own_size(recipe, name) > 1 for name in recipe.baselines) else ""
    )
    remedy = f"{alone}{others} (1 x 1)"
    return [replace(context, remedy=remedy) for _, context in found]


def _context_of(recipe: Recipe, name: str, around: int) -> Context:
    """Return what a system looks at, with a refinement that looks so many pixels further in all."""
    own = own_size(recipe, name)
    origin = f"the spatial_window of '{name}'"
    remedy = "a smaller spatial_window" if name == recipe.model else f"--baselines without '{name}'"
    if runs.is_network(name):
        reach = (own - recipe.patch_size) // 2
        origin, remedy = f"--patch-size {recipe.patch_size}", ""
        if reach:
            origin += (
                f" and {reach} pixels on each side: the receptive field of the front-end of '{name}' in mode "
                f"'{recipe.mode}'"
            )
    if around:
        origin = (
            f"{origin} and {around // 2} pixels on each side: the reach of --refine {recipe.refine}"
        )
        remedy = "--refine none"
    return Context(own + around, origin, remedy)


def recipe_refinements(recipe: Recipe) -> list[Refinement | None]:
    """Return what a recipe's refinement may be: one, or with ``auto`` none and the default.

    With ``auto`` there is none where a network has no validation pixels left that could choose; of estimators, folds of the
    training pixels choose.

    Raises:
        ConfigError: there is no such refinement or setting, or a value is out of range.
    """
    if recipe.refine == "auto":
        if runs.is_network(recipe.model) and (recipe.refit or recipe.val_fraction == 0):
            return [None]
        return [None, make_refinement(DEFAULT_REFINEMENT, recipe.refine_args)]
    return [make_refinement(recipe.refine, recipe.refine_args)]


def open_teacher(recipe: Recipe) -> SceneTeacher | None:
    """Load the run that a network learns from, None where there is none.

    Raises:
        VitreousError: it is no finished run of a network that classifies, or cannot teach in this mode.
    """
    if recipe.teacher is None or not runs.is_network(recipe.model):
        return None
    from vitreous.tasks.teacher import SceneTeacher

    return SceneTeacher(recipe.teacher, recipe)


def own_size(recipe: Recipe, name: str) -> int:
    """Return the side of the square that a system looks at by itself, with a recipe's settings."""
    if not runs.is_network(name):
        own = card(name).variants[name]
        settings = {**own, **(recipe.model_args if name == recipe.model else {})}
        return int(settings.get("spatial_window", 1))
    reach = int(system_module(name).build.stem_reach) if recipe.mode == "scene" else 0
    return recipe.patch_size + 2 * reach


def learned_from(recipe: Recipe, splits: Splits) -> Splits:
    """Return the splits with all pixels that a system's weights come from among their training pixels.

    Validation pixels choose the epoch of a network; with ``refit`` it is then trained on them as well. Estimators have
    nothing to choose and are trained on both at once, so that no label is withheld in vain.
    """
    return (
        splits.without_validation()
        if recipe.refit or recipe.val_fraction == 0 or not runs.is_network(recipe.model)
        else splits
    )
