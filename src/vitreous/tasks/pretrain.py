"""From a scene without labels to an architecture that has learned from it, ready to be fine-tuned.

The run's ``model.safetensors`` is an ordinary model file; ``preprocess.safetensors`` holds what its input is scaled by.
``vitreous train --init RUN`` starts from both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from rich.console import Console
from torch import Tensor

from vitreous.catalog.registry import (
    card,
    cards,
    check_arguments,
    create_model,
    system_module,
)
from vitreous.data.contract import BandContract
from vitreous.data.crops import Area, Crops, cut_scene, sample_spectra
from vitreous.errors import CheckpointError, ConfigError, ModelError, did_you_mean
from vitreous.files import read_json, write_json
from vitreous.layers.backbone import Backbone
from vitreous.layers.bands import Bands
from vitreous.layers.preprocess import Preprocess
from vitreous.layers.pretrainer import Pretrainer
from vitreous.recipe import PretrainRecipe, make_recipe
from vitreous.tasks import runs
from vitreous.tasks.checkpoint import load_exactly, load_tensors, save_tensors
from vitreous.tasks.loop import Row, fit
from vitreous.tasks.runs import CONFIG, METRICS, MODEL, PREPROCESS, STATE
from vitreous.tasks.unlabelled import CropTask, open_named
from vitreous.tasks.weights import load_model, save_model

TASK = "pretrain"
PICTURED = 4  # crops in the report


class PretrainTask(CropTask):
    """Trains an architecture together with what it takes to learn without labels."""

    model: Pretrainer
    average: Pretrainer
    columns = ("epoch", "step", "seconds", "learning_rate", "train_loss", "val_loss")
    shown: ClassVar[dict[str, str]] = {"train_loss": "loss", "val_loss": "val loss"}

    def __init__(
        self,
        model: Pretrainer,
        recipe: PretrainRecipe,
        crops: Crops,
        val: Crops | None,
        preprocess: Preprocess,
    ) -> None:
        super().__init__(model, recipe, crops, val)
        self.preprocess = preprocess

    def inputs(self, crops: Tensor, generator: torch.Generator) -> Tensor:
        """Return channels; invalid pixels are 0."""
        return self.preprocess(crops)

    def loss(self, crops: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of a batch; what is random in it comes from the epoch's global stream."""
        return self.model(self.preprocess(crops)).loss

    def validate(self, crops: Tensor) -> Row:
        """Return the loss of the averaged weights; the same masks each time."""
        return {"val_loss": float(self.average(self.preprocess(crops)).loss)}


def train(
    recipe: PretrainRecipe, *, resume: bool = False, command: str = "", show: bool = True
) -> Path:
    """Pre-train as the recipe says, and write model file, figures and report.

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
    console.print(f"reading {recipe.scene}", highlight=False)
    scene = open_named(recipe.scene, recipe.hints)
    contract = BandContract.of(scene)
    bands = contract.select(scene)
    areas = cut_scene(scene, recipe.val_fraction)
    torch.manual_seed(recipe.seed)
    preprocess = Preprocess.fit(
        sample_spectra(scene, bands, areas[0]),
        reduction=recipe.reduction,
        components=recipe.components,
        whiten=False,
        standardize=True,
    )
    model = _pretrainer(recipe, preprocess, contract)
    crops, val = _crops(scene, bands, areas, model)
    name = f"{Path(recipe.scene).stem}-{recipe.model}"
    folder, first = runs.start_folder(recipe, TASK, name, resume=resume)
    if first and not resume:
        runs.write_config(folder, TASK, recipe, scene, command)
    if val is None and recipe.val_fraction:
        console.print(
            f"no validation: {recipe.val_fraction:.0%} of the scene are narrower than a crop of {crops.side} pixels",
            highlight=False,
        )
    task = PretrainTask(model, recipe, crops, val, preprocess)
    fit(task, folder, resume=resume, show=show)
    if not first:
        raise SystemExit(0)  # this process was started by the first one, to train with it
    trained = task.result()
    assert isinstance(trained, Pretrainer)
    console.print(f"run {folder}", highlight=False)
    _keep(folder, recipe, task, trained, contract)
    if recipe.report:
        from vitreous.report.pretraining import build_report

        console.print("writing the report", highlight=False)
        build_report(folder, scene, _pictures(task, trained))
    (folder / STATE).unlink(missing_ok=True)
    return folder


def check_recipe(recipe: PretrainRecipe) -> None:
    """Refuse what cannot be pre-trained.

    Raises:
        ConfigError: the system does not say how.
        ModelError: there is no such system.
    """
    entry = card(recipe.model)
    if TASK not in entry.tasks:
        known = [name for other in cards() if TASK in other.tasks for name in other.variants]
        raise ConfigError(
            f"'{recipe.model}' has no way to learn without labels.",
            did_you_mean(recipe.model, known),
        )


@dataclass(frozen=True)
class Pretrained:
    """What a run learned.

    Attributes:
        path: its folder.
        weights: the model file.
        preprocess: what its input is scaled by.
        contract: the bands and unit that it was trained on.
    """

    path: Path
    weights: Path
    preprocess: Preprocess
    contract: BandContract

    @property
    def recipe(self) -> PretrainRecipe:
        """The settings it was trained with."""
        return make_recipe(read_json(self.path / CONFIG)["recipe"], PretrainRecipe)


def load_run(path: str | Path) -> Pretrained:
    """Load a pre-trained run, but for its weights, which ``load_model`` reads.

    Raises:
        CheckpointError: the folder holds no finished run, or its files are damaged.
    """
    path = Path(path)
    if not (path / PREPROCESS).is_file():
        raise CheckpointError(
            f"{path} holds no finished pre-training.", "Make one with 'vitreous pretrain'."
        )
    tensors, header = load_tensors(path / PREPROCESS)
    with runs.readable_header(path / PREPROCESS, header):
        contract = BandContract.from_json(header["contract"])
        with torch.device("meta"):
            preprocess = Preprocess(len(contract.used), int(header["channels"]))
        load_exactly(preprocess, tensors, "the preprocessing")
    return Pretrained(path, path / MODEL, preprocess, contract)


# -- steps of train ---------------------------------------------------------------------------------------


def _pretrainer(
    recipe: PretrainRecipe, preprocess: Preprocess, contract: BandContract
) -> Pretrainer:
    """Return a fresh architecture, or that of a model file, with what it takes to train it."""
    if recipe.init is None:
        encoder = create_model(
            recipe.model,
            bands=preprocess.channels,
            num_classes=1,
            image_size=recipe.image_size,
            **recipe.model_args,
        )
    else:
        centres = contract.wavelengths if recipe.reduction == "none" else None
        encoder, report = load_model(
            recipe.init, Bands(preprocess.channels, centres), 1, recipe.image_size, new_head=True
        )
        if report.made.name != recipe.model:
            raise ModelError(
                f"{recipe.init} holds '{report.made.name}', not '{recipe.model}'.",
                f"Use --model {report.made.name}.",
            )
    assert isinstance(encoder, Backbone)
    build = system_module(recipe.model).build_pretrainer
    check_arguments(recipe.model, build, recipe.pretrainer_args)
    made = build(encoder.train(), **recipe.pretrainer_args)
    assert isinstance(made, Pretrainer)
    return made


def _crops(
    scene: xr.DataArray, bands: npt.NDArray[np.int64], areas: list[Area], model: Pretrainer
) -> tuple[Crops, Crops | None]:
    side = model.encoder.image_size * model.finest
    crops = Crops(scene, bands, areas[0], side)
    return crops, Crops(scene, bands, areas[1], side) if min(areas[1].shape) >= side else None


def _keep(
    folder: Path,
    recipe: PretrainRecipe,
    task: PretrainTask,
    trained: Pretrainer,
    contract: BandContract,
) -> None:
    """Write what was learned: the figures first, the preprocessing last, because it tells that all is there."""
    last = task.history[-1]
    encoder = trained.trained_encoder()
    figures = {
        "schema": 1,
        "task": TASK,
        "parameters": runs.parameter_counts(encoder)[0],
        "train_seconds": task.elapsed,
        "train_loss": last["train_loss"],
        "val_loss": last.get("val_loss"),
    }
    write_json(folder / METRICS, figures)
    centres = contract.wavelengths if recipe.reduction == "none" else None
    bands = Bands(task.preprocess.channels, centres)
    save_model(encoder, folder / MODEL, bands=bands, origin=f"pre-trained on {recipe.scene}")
    header = {
        "schema": runs.SCHEMA,
        "kind": "preprocess",
        "contract": contract.to_json(),
        "channels": task.preprocess.channels,
    }
    save_tensors(folder / PREPROCESS, task.preprocess.state_dict(), header)


def _pictures(task: PretrainTask, trained: Pretrainer) -> dict[str, npt.NDArray[np.float32]]:
    """Return what the trained model makes of a few crops it has not seen, where there are any."""
    crops = task.val or task.crops
    places = crops.grid()
    chosen = places[:: max(1, len(places) // PICTURED)][:PICTURED]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.stack([crops.read(*place) for place in chosen])
        made = trained.reconstruct(task.preprocess(images))
    return {name: pictures.numpy() for name, pictures in made.items()}
