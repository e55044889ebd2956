"""From a scene without labels to an architecture that has learned from it, ready to be fine-tuned.

The run's ``model.safetensors`` is an ordinary model file; ``preprocess.safetensors`` holds what its input is scaled by.
``vitreous train --init RUN`` starts from both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from vitreous.catalog.registry import (
    check_arguments,
    check_system,
    check_task,
    create_model,
    system_module,
)
from vitreous.catalog.tasks import build_report_of
from vitreous.checkpoints import headers
from vitreous.checkpoints.model_files import load_model, save_model
from vitreous.checkpoints.tensors import load_exactly, load_tensors, save_tensors
from vitreous.data.blocks import TRAIN, VAL
from vitreous.data.contract import BandContract
from vitreous.data.crops import Crops, CropSource
from vitreous.data.provenance import Provenance, Seen, Tested, start_leakage_of
from vitreous.errors import CheckpointError, ModelError
from vitreous.files import write_json
from vitreous.layers.backbone import Backbone
from vitreous.layers.bands import Bands
from vitreous.layers.preprocess import Preprocess
from vitreous.layers.pretrainer import Pretrainer
from vitreous.recipe import PretrainRecipe
from vitreous.tasks import runs
from vitreous.tasks.provenance import start_provenance
from vitreous.tasks.runs import METRICS, MODEL, PREPROCESS, STATE
from vitreous.tasks.sources import Sources, open_sources

if TYPE_CHECKING:
    from vitreous.tasks.fit_pretrainer import PretrainTask

TASK = "pretrain"
PICTURED = 4  # crops in the report


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
    recipe = runs.prepared(recipe, console, trained=True, networks=True)
    runs.check_start(recipe.init, TASK)
    console.print(f"reading {recipe.source}", highlight=False)
    sources = open_sources(recipe)
    start = start_provenance(recipe.init)
    spectra = sources.spectra()
    contract = sources.contract.measured(spectra)
    torch.manual_seed(recipe.seed)
    preprocess = Preprocess.fit(
        spectra,
        spectra=recipe.spectra,
        wavelengths=contract.wavelengths,
        reduction=recipe.reduction,
        components=recipe.components,
        whiten=False,
        standardize=True,
    )
    model = _pretrainer(recipe, preprocess, contract)
    crops, val = _crops(sources, model)
    name = runs.name_of(recipe)
    from vitreous.tasks.fit_pretrainer import PretrainTask
    from vitreous.tasks.loop import fit

    config = runs.config_of(TASK, recipe, sources.first, command, sources.fingerprints)
    with runs.started_folder(recipe, config, name, resume=resume) as (folder, first):
        if resume:
            runs.check_unchanged(folder, sources.fingerprints)
        if val is None and recipe.val_fraction:
            console.print(
                f"no validation: {recipe.val_fraction:.0%} of the scene is narrower than a crop of {crops.side} pixels"
                if not sources.many
                else "no validation: no scene has that role",
                highlight=False,
            )
        task = PretrainTask(model, recipe, crops, val, preprocess)
        fit(task, folder, resume=resume, show=show)
        if not first:
            return folder  # the first process does the rest
        trained = task.result()
        assert isinstance(trained, Pretrainer)
        console.print(f"run {folder}", highlight=False)
        seen = None if val is None else _seen_in_validation(sources, start)
        own = (
            Seen.values(TASK, piece.name, piece.ground(), piece.area)
            for piece in sources.pieces[TRAIN]
        )
        _keep(folder, recipe, task, trained, contract, (*start, *own), seen)
        if recipe.report:
            console.print("writing the report", highlight=False)
            build_report_of(TASK)(folder, sources.first, _pictures(task, trained))
        (folder / STATE).unlink(missing_ok=True)
    return folder


def check_recipe(recipe: PretrainRecipe) -> None:
    """Refuse what cannot be pre-trained.

    Raises:
        ConfigError: the system does not say how.
        ModelError: there is no such system, or its arguments make none.
    """
    check_task(recipe.model, TASK)
    if recipe.init is None:
        check_system(recipe.model, recipe.model_args, image_size=recipe.image_size)
    build = system_module(recipe.model).build_pretrainer
    check_arguments(recipe.model, build, recipe.pretrainer_args)


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
    def provenance(self) -> Provenance:
        """The ground that its weights have learned from."""
        return start_provenance(str(self.path))

    @property
    def recipe(self) -> PretrainRecipe:
        """The settings it was trained with."""
        return runs.recipe_of(self.path, PretrainRecipe)


def load_run(path: str | Path) -> Pretrained:
    """Load a pre-trained run, but for its weights, which ``load_model`` reads.

    Raises:
        CheckpointError: the folder holds no finished run, or its files are damaged.
    """
    path = Path(path)
    if not (path / PREPROCESS).is_file():
        raise CheckpointError(
            f"{path} does not hold a finished pre-training run.",
            "Create one with 'vitreous pretrain'.",
        )
    tensors, header = load_tensors(path / PREPROCESS)
    with headers.readable_header(path / PREPROCESS, header):
        contract = BandContract.from_json(header["contract"])
        with torch.device("meta"):
            preprocess = Preprocess(
                len(contract.used), int(header["channels"]), header.get(headers.SPECTRA, "none")
            )
        load_exactly(preprocess, tensors, "the preprocessing")
    return Pretrained(path, path / MODEL, preprocess, contract)


# -- steps of train ---------------------------------------------------------------------------------------


def _pretrainer(
    recipe: PretrainRecipe, preprocess: Preprocess, contract: BandContract
) -> Pretrainer:
    """Return a fresh architecture, or that of a model file, with what it takes to train it."""
    bands = _input_bands(recipe, preprocess, contract)
    if recipe.init is None:
        encoder = create_model(
            recipe.model,
            bands=bands,
            num_classes=1,
            image_size=recipe.image_size,
            **recipe.model_args,
        )
    else:
        start = Path(recipe.init)
        file = str(start / MODEL) if (start / PREPROCESS).is_file() else recipe.init
        encoder, report = load_model(file, bands, 1, recipe.image_size, new_head=True)
        if report.made.name != recipe.model:
            raise ModelError(
                f"{recipe.init} holds '{report.made.name}', not '{recipe.model}'.",
                f"Use --model {report.made.name}.",
            )
        if recipe.model_args not in ({}, report.made.model_args):
            raise ModelError(
                f"{recipe.init} has the model arguments {report.made.model_args}, not {recipe.model_args}.",
                "Omit --model-args: they come with the weights.",
            )
    assert isinstance(encoder, Backbone)
    build = system_module(recipe.model).build_pretrainer
    try:
        made = build(encoder.train(), **recipe.pretrainer_args)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ModelError(
            f"{recipe.model} cannot be pre-trained with {recipe.pretrainer_args}: {error}.",
            "Change or drop these settings.",
        ) from error
    assert isinstance(made, Pretrainer)
    return made


def _input_bands(recipe: PretrainRecipe, preprocess: Preprocess, contract: BandContract) -> Bands:
    """Describe the channels of a network's input: components have no wavelengths, bands that are only scaled do."""
    return contract.spectrum if recipe.reduction == "none" else Bands(preprocess.channels)


def _crops(sources: Sources, model: Pretrainer) -> tuple[CropSource, CropSource | None]:
    side = model.encoder.size[0] * model.finest  # crops are square
    crops = sources.crops(TRAIN, side)
    if crops is None:  # says what does not fit
        piece = sources.pieces[TRAIN][0]
        scene = piece.open()
        crops = Crops(scene, sources.contract.select(scene), piece.area, side)
    return crops, sources.crops(VAL, side)


def _keep(
    folder: Path,
    recipe: PretrainRecipe,
    task: PretrainTask,
    trained: Pretrainer,
    contract: BandContract,
    provenance: Provenance,
    val_seen: float | None,
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
        "val_seen": val_seen,
    }
    write_json(folder / METRICS, figures)
    bands = _input_bands(recipe, task.preprocess, contract)
    save_model(
        encoder,
        folder / MODEL,
        bands=bands,
        origin=f"pre-trained on {recipe.source}",
        provenance=provenance,
    )
    header = {
        "schema": headers.SCHEMA,
        "kind": "preprocess",
        "contract": contract.to_json(),
        "channels": task.preprocess.channels,
        headers.SPECTRA: task.preprocess.spectra.kind,
    }
    save_tensors(folder / PREPROCESS, task.preprocess.state_dict(), header)


def _seen_in_validation(sources: Sources, start: Provenance) -> float:
    """Return the share of the validation area that the weights had learned from before."""
    tested = [
        Tested(piece.area.pixels(piece.open().sizes["x"]), piece.ground())
        for piece in sources.pieces[VAL]
    ]
    return start_leakage_of(start, tested)[0].share


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
