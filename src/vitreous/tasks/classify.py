"""The main job: from labelled scenes to a trained system, its accuracy, its maps and its report."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from rich.console import Console

from vitreous.catalog.registry import card, check_task, stage
from vitreous.catalog.tasks import build_report_of
from vitreous.checkpoints import classifiers
from vitreous.data.blocks import TEST, TRAIN, VAL
from vitreous.data.contract import BandContract
from vitreous.data.provenance import Provenance, Seen
from vitreous.data.roles import ROLE_NAMES, Split, Splits
from vitreous.errors import ConfigError, ModelError
from vitreous.files import read_json, write_json
from vitreous.inference.export_format import sha256
from vitreous.inference.postprocess import Postprocess, Uncertainty, changed, finished
from vitreous.inference.predict import Prediction, predict_scene
from vitreous.inference.windows import Layer
from vitreous.methods._apply import complete_settings
from vitreous.progress import progress_bar
from vitreous.recipe import Recipe
from vitreous.tasks import auto, runs
from vitreous.tasks.areas import Placed, area_figures
from vitreous.tasks.candidates import chosen_candidates, has_networks
from vitreous.tasks.checks import check_models
from vitreous.tasks.division import (
    draw_split,
    draw_splits,
    fitting,
    learned_from,
    measured_contract,
    open_teacher,
    recipe_refinements,
    test_scene,
)
from vitreous.tasks.finish import calibration_figures, fit_postprocess
from vitreous.tasks.labelled import LabelledScene, LabelledScenes, open_data, open_labelled
from vitreous.tasks.provenance import start_provenance
from vitreous.tasks.runs import CONFIG, METRICS, MODEL, SPLIT, load_run
from vitreous.tasks.scoring import (
    MAP,
    begun_with,
    by_classifier,
    by_maps,
    context_size,
    map_path,
    map_scenes,
    metrics_of,
    parts_of,
    receptive_size,
    score,
    score_pixels,
    system_row,
    test_figures,
)
from vitreous.tasks.training import (
    Trained,
    class_weights,
    classifier_settings,
    distillation_of,
    drop_states,
    fit_estimator,
    fit_network,
    fit_system,
)

if TYPE_CHECKING:
    from vitreous.inference.export import Parity

__all__ = [
    "MAP",
    "TASK",
    "Trained",
    "apply",
    "class_weights",
    "draw_split",
    "evaluate",
    "export",
    "fit_and_score",
    "load_run",
    "open_labelled",
    "receptive_size",
    "reopened",
    "score_pixels",
    "train",
]

TASK = "classify"
UNREFINED = " (unrefined)"  # behind the name of a system, of its row without refinement
SHOWN = 6  # test scenes of a collection in the report


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
    recipe_refinements(recipe)
    for name in recipe.baselines:
        check_task(name, TASK, baseline=True)
    recipe = runs.prepared(
        recipe,
        console,
        trained=runs.is_network(recipe.model),
        networks=any(map(runs.is_network, (recipe.model, *recipe.baselines)))
        or (recipe.chosen and has_networks(chosen_candidates(recipe))),
    )
    net = check_models(recipe)
    distillation = distillation_of(recipe)
    if net is not None:
        with torch.device("meta"):
            classifiers.with_decoder(net, classifier_settings(recipe))
    if recipe.adapt_method is not None:
        _check_method(recipe.adapt_method, recipe.adapt_args, "adapt", "adapt the model")
    if recipe.reduce is not None:
        _check_method(recipe.reduce, recipe.reduce_args, "reduce", "reduce tokens")
    runs.check_start(recipe.init, TASK)
    teacher = open_teacher(recipe)
    console.print(f"reading {recipe.source}", highlight=False)
    data = open_data(recipe)
    start = start_provenance(recipe.init)
    if teacher is not None:  # its answers tell of the labels that it has learned
        teacher.check(data)
        start = (*start, *teacher.provenance)
    name = runs.name_of(recipe)
    config = runs.config_of(TASK, recipe, data.first, command, data.fingerprints)
    if teacher is not None and distillation is not None:
        config["teacher"] = teacher.noted(distillation)
    with runs.started_folder(recipe, config, name, resume=resume) as (folder, first):
        if resume:
            runs.check_unchanged(folder, data.fingerprints)
            if teacher is not None:
                runs.check_same_teacher(folder, teacher.path, teacher.hash)
        splits = _splits(recipe, data, folder)
        contract = measured_contract(data, splits)
        if first:
            _describe(console, recipe, data, splits, start, folder)
        if resume and (folder / MODEL).is_file():  # it was stopped after training
            run = load_run(folder)
            trained, start = Trained(run.classifier, *_known_figures(folder)), run.start
            trained.postprocess = run.postprocess
            if recipe.chosen:
                trained.name, trained.title = run.name, auto.title_of(folder)
        elif recipe.chosen:
            trained = auto.compare_and_train(recipe, data, splits, contract, folder, console)
            _keep(folder, recipe, trained, data, splits, start)
            auto.drop_answers(folder)
        elif runs.is_network(recipe.model):
            trained = fit_network(
                recipe, data, splits, contract, folder, teacher, resume=resume, show=show
            )
            if not first:
                return folder  # the first process does the rest
            _keep(folder, recipe, trained, data, splits, start)
        else:
            trained = fit_estimator(recipe.model, recipe, data, splits, contract)
            trained.postprocess = _finished(recipe, data, splits, trained, folder, console)
            auto.drop_answers(folder)
            _keep(folder, recipe, trained, data, splits, start)
        _measure(folder, recipe, trained, data, splits, start, console)
        drop_states(folder)
    return folder


def evaluate(
    path: str | Path, *, refine: str | None = None, refine_args: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Measure a trained run again on the test pixels of its split.

    Args:
        path: the run folder.
        refine: another refinement than the run's own (see :func:`vitreous.inference.postprocess.make_refinement`).
        refine_args: its settings.

    Returns:
        The metrics of ``metrics.json``, for the trained system alone.
    """
    run = load_run(path)
    run = replace(run, postprocess=changed(run.postprocess, refine, refine_args))
    data, splits = reopened(run)
    parameters = (
        runs.parameter_counts(run.classifier)[0]
        if isinstance(run.classifier, classifiers.Network)
        else None
    )
    row = {
        "name": run.name,
        "kind": card(run.name).kind,
        "parameters": parameters,
        "trainable": None,
        "train_seconds": None,
        "val": None,
        **test_figures(finished(run.classifier, run.postprocess), data, splits, run.class_names),
        **finishing_figures(run.classifier, run.postprocess, data, splits),
    }
    return metrics_of(data, splits, run.recipe, learned_size(run), [row], run.start)


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
    refine: str | None = None,
    refine_args: dict[str, Any] | None = None,
    uncertainty: str | Path | None = None,
    novelty: str | Path | None = None,
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
        refine: another refinement than the run's own (see :func:`vitreous.inference.postprocess.make_refinement`).
        refine_args: its settings.
        uncertainty: also write here how unsure the probabilities are, ``.tif``: entropy and one minus the largest.
        novelty: also write here how far spectra lie from those of the training pixels, ``.tif``: a percentile of them.

    Raises:
        VitreousError: what is there cannot be loaded, or the scene does not fit it.
    """
    from vitreous.tasks.export import load_for

    trained = load_for(path, runtime, trust=trust)
    after = changed(trained.postprocess, refine, refine_args)
    with progress_bar("mapping") as advance:
        return predict_scene(
            finished(trained.classifier, after),
            scene,
            out,
            class_names=trained.class_names,
            class_colors=trained.class_colors,
            class_codes=trained.class_codes,
            probabilities=probabilities,
            layers=_layers(after, path, uncertainty, novelty),
            window=window,
            workers=workers,
            dask=dask,
            progress=advance,
        )


def _layers(
    after: Postprocess | None,
    run: str | Path,
    uncertainty: str | Path | None,
    novelty: str | Path | None,
) -> dict[Path, Layer]:
    """Return the layers that are written beside a map, by their files.

    Raises:
        ConfigError: the run cannot tell new spectra, or both are one file.
    """
    layers: dict[Path, Layer] = {}
    if uncertainty is not None:
        if after is None or after.temperature is None:
            warnings.warn(
                f"The probabilities of {run} are not calibrated, because it had no validation pixels: the uncertainty "
                "ranks pixels, but does not tell how often they are wrong.",
                stacklevel=3,
            )
        layers[Path(uncertainty)] = Uncertainty()
    if novelty is not None:
        if after is None or after.novelty is None:
            raise ConfigError(
                f"{run} cannot tell new spectra: it has too few training pixels, or was made by an older version.",
                "Omit --novelty, or train again with more pixels.",
            )
        if Path(novelty) in layers:
            raise ConfigError(
                f"Two products would both be {novelty}.", "Give them different names."
            )
        layers[Path(novelty)] = after.novelty
    return layers


def apply_mosaic(
    path: str | Path,
    scenes: Sequence[xr.DataArray],
    names: Sequence[str],
    out: str | Path,
    *,
    probabilities: str | Path | None = None,
    window: int | None = None,
    workers: int | None = None,
    dask: str | None = None,
    runtime: str | None = None,
    trust: bool = False,
    refine: str | None = None,
    refine_args: dict[str, Any] | None = None,
) -> Prediction:
    """Map many scenes into one mosaic with a run or an export of one; arguments as in :func:`apply`.

    Raises:
        VitreousError: what is there cannot be loaded, or the scenes do not fit it or have no place.
    """
    from vitreous.inference.mosaic import predict_mosaic
    from vitreous.tasks.export import load_for

    trained = load_for(path, runtime, trust=trust)
    after = changed(trained.postprocess, refine, refine_args)
    with progress_bar("mapping scenes") as advance:
        return predict_mosaic(
            finished(trained.classifier, after),
            scenes,
            names,
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


def contract_of(path: str | Path) -> BandContract:
    """Return the bands and unit of the scenes that a run or an export takes."""
    from vitreous.tasks.export import load_for

    return load_for(path, trust=True).classifier.contract


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
    if not isinstance(run.classifier, classifiers.Network):
        raise ModelError(
            f"'{run.name}' is not a network; only networks can be exported.",
            "Use the run itself: vitreous predict.",
        )
    data, split = test_scene(run)
    product = graphs.Product(
        run.classifier,
        run.name,
        run.class_names,
        run.class_colors,
        sha256(run.path / MODEL),
        run.provenance,
        run.class_codes,
        TASK,
        run.postprocess,
    )
    pixels = split.pixels(TEST)
    return graphs.export(product, folder, form=form, scene=data.scene, pixels=pixels, single=single)


def reopened(run: runs.Run) -> tuple[LabelledScenes, Splits]:
    """Open the scenes and labels of a finished run again, with its splits.

    Raises:
        VitreousError: they are others than it was trained on.
    """
    data = open_data(run.recipe, again=True)
    splits = fitting(run.splits, data)
    runs.check_unchanged(run.path, data.fingerprints)
    return data, splits


def fit_and_score(
    recipe: Recipe,
    data: LabelledScene | LabelledScenes,
    split: Split | Splits,
    folder: Path,
) -> tuple[Trained, dict[str, Any]]:
    """Train the recipe's model on a split and score it on the test pixels; no map, no report.

    Args:
        recipe: the settings; those of the data and the split are not read.
        data: a scene with its labels, or several.
        split: who trains and who tests.
        folder: keeps the state while a network trains; a training interrupted there goes on.

    Returns:
        The trained system and its row of ``metrics.json``.
    """
    scenes = data if isinstance(data, LabelledScenes) else LabelledScenes.of(data)
    splits = split if isinstance(split, Splits) else Splits.of(split)
    contract = measured_contract(scenes, splits)
    if recipe.chosen:
        quiet = Console(quiet=True)
        trained = auto.compare_and_train(recipe, scenes, splits, contract, folder, quiet)
        auto.drop_answers(folder)
    else:
        teacher = open_teacher(recipe)
        trained = fit_system(
            recipe, scenes, splits, contract, folder, teacher, resume=True, show=False
        )
        if recipe.refine != "none":
            quiet = Console(quiet=True)
            trained.postprocess = _finished(recipe, scenes, splits, trained, folder, quiet)
            auto.drop_answers(folder)
    drop_states(folder)
    row = system_row(trained.title or recipe.model, trained, trained.name or recipe.model)
    row |= test_figures(trained.finished, scenes, splits)
    return trained, row


def _finished(
    recipe: Recipe,
    data: LabelledScenes,
    splits: Splits,
    trained: Trained,
    folder: Path,
    console: Console,
) -> Postprocess:
    """Return what becomes of the probabilities of a system that the user named."""
    after = None
    if recipe.refine == "auto" and not runs.is_network(recipe.model):
        after = auto.judged_by_folds(recipe, data, splits, trained, folder, console)
    return after or fit_postprocess(recipe, data, splits, trained.classifier)


def write_report(folder: Path, data: LabelledScenes, splits: Splits) -> None:
    """Write the report of a run; of a collection some of its test scenes are shown."""
    from vitreous.report.html import Shown, ShownCollection

    tested = splits.scenes_with(TEST)[:SHOWN]
    if len(data) == 1:
        build_report_of(TASK)(folder, data[0].scene, data[0].labels, splits[0])
        return
    shown = [
        Shown(data.names[k], scene.scene, scene.labels, splits[k].roles, map_path(folder, data, k))
        for k, scene in ((k, data[k]) for k in tested)
    ]
    k = splits.scenes_with(TRAIN)[0]
    learned = Shown(data.names[k], data[k].scene, data[k].labels, splits[k].roles)
    trained = np.zeros(len(data.class_names) + 1, dtype=np.int64)
    for k in splits.scenes_with(TRAIN):
        labels = np.asarray(data[k].labels.values)
        trained += np.bincount(labels[splits[k].roles == TRAIN], minlength=len(trained))
    build_report_of(TASK)(
        folder,
        data[tested[0]].scene,
        data[tested[0]].labels,
        splits[tested[0]],
        collection=ShownCollection(Path(data.source).name, shown, learned, trained),
    )


def learned_size(run: runs.Run) -> int:
    """Return the side of the square of pixels that a run's predictions depend on, by itself or by its teacher."""
    return max(context_size(run.classifier, run.postprocess), runs.teacher_size(run.path))


def finishing_figures(
    classifier: classifiers.Classifier,
    after: Postprocess | None,
    data: LabelledScenes,
    splits: Splits,
) -> dict[str, Any]:
    """Return how a system's probabilities are refined, and how well they are calibrated, as its row has it."""
    own = None if after is None else after.refine
    return {
        "refine": None if own is None else {**own.model_dump(), "reach": own.reach},
        "calibration": calibration_figures(after, classifier, data, splits),
    }


# -- steps of train ---------------------------------------------------------------------------------------


def _check_method(name: str, settings: dict[str, Any], wanted: str, does: str) -> None:
    """Refuse a method of another stage, and settings that it does not have."""
    complete_settings(name, settings, wanted)
    if stage(name) != wanted:
        raise ConfigError(f"'{name}' does not {does}.", "'vitreous methods' lists what does.")


def _splits(recipe: Recipe, data: LabelledScenes, folder: Path) -> Splits:
    """Return the run's splits: the saved ones where there are any, so that resuming cannot change them."""
    if (folder / SPLIT).is_file():
        return fitting(Splits.load(folder / SPLIT), data)
    splits = draw_splits(recipe, data)
    splits.save(folder / SPLIT)
    return splits


def _describe(
    console: Console,
    recipe: Recipe,
    data: LabelledScenes,
    splits: Splits,
    start: Provenance,
    folder: Path,
) -> None:
    """Say which pixels train and test, and what the test pixels are worth."""
    counts = splits.counts
    side = int(splits.params.get("patch_size", 1))
    facts = metrics_of(data, splits, recipe, side, [], start)
    console.print(
        f"run {folder}\nsplit '{splits.method}': {counts['train']} training, {counts['val']} validation, "
        f"{counts['test']} test pixels{_of_scenes(splits)}; {facts['split']['leakage']:.0%} of the test pixels lie "
        "inside a training patch"
        + (f" or on ground that {begun_with(recipe)} have seen" if start else ""),
        highlight=False,
    )
    if splits.params.get("per_class") and recipe.train_per_class is None:
        console.print(
            f"at most {splits.params['per_class']} pixels of each class train; --mode dense learns from all of them, "
            "and --train-per-class sets another number",
            highlight=False,
        )
    if facts["start"] is not None:
        for sentence in facts["start"]["sentences"]:
            console.print(f"[yellow]{sentence}[/yellow]", highlight=False)
    if facts["split"]["optimistic"]:
        console.print(
            "[yellow]this split is optimistic: expect lower accuracy on unseen ground[/yellow]"
        )


def _of_scenes(splits: Splits) -> str:
    """Return in how many scenes the pixels of each role lie."""
    if len(splits) == 1:
        return ""
    numbers = (str(len(splits.scenes_with(role))) for role in ROLE_NAMES)
    return f" (in {', '.join(numbers)} scenes)"


def _known_figures(folder: Path) -> tuple[float, int | None, int | None]:
    figures = runs.figures_of(folder)
    return figures.train_seconds, figures.parameters, figures.trainable


def _keep(
    folder: Path,
    recipe: Recipe,
    trained: Trained,
    data: LabelledScenes,
    splits: Splits,
    start: Provenance,
) -> None:
    """Finish and write what was trained; the weights last, because resuming takes them for the end of training."""
    if trained.postprocess is None:
        trained.postprocess = fit_postprocess(recipe, data, splits, trained.classifier)
    name = trained.name or recipe.model
    config = read_json(folder / CONFIG)
    if recipe.chosen:
        config["settled"] = auto.told(folder)["settings"] or {}
    config["model"] = {
        "name": name,
        "parameters": trained.parameters,
        "trainable": trained.trainable,
        "train_seconds": trained.seconds,
        "chosen": None if trained.choice is None else asdict(trained.choice),
    }
    write_json(folder / CONFIG, config)
    size = max(receptive_size(trained.classifier), runs.teacher_size(folder))
    learned = sorted({*splits.scenes_with(TRAIN), *splits.scenes_with(VAL)})
    own = (
        Seen.labels(Path(data.entries[k].scene).name, data.ground(k), splits[k], size)
        for k in learned
    )
    classifiers.save_classifier(
        folder / MODEL,
        trained.classifier,
        name=name,
        model_args=trained.model_args,
        class_names=data.class_names,
        class_colors=data.class_colors,
        provenance=(*start, *own),
        class_codes=data.class_codes,
        postprocess=trained.postprocess,
    )


def _measure(
    folder: Path,
    recipe: Recipe,
    trained: Trained,
    data: LabelledScenes,
    splits: Splits,
    start: Provenance,
    console: Console,
) -> None:
    """Map the scenes, score the system and the baselines on the test pixels, and write metrics and report."""
    title, name = trained.title or recipe.model, trained.name or recipe.model
    row = system_row(title, trained, name)
    if recipe.map:
        mapped = map_scenes(folder, recipe, trained.finished, data, splits, console)
        row["pixels_per_second"] = mapped.pixels_per_second
        row["test"] = score(by_maps(folder, data), data, splits, TEST)
        row["areas"] = area_figures(
            row["test"]["confusion"],
            mapped.class_pixels,
            mapped.pixel_area,
            Placed.of(parts_of(by_maps(folder, data), data, splits, TEST)),
        )
    else:
        row |= test_figures(trained.finished, data, splits)
    if (used := learned_from(recipe, splits)).scenes_with(VAL):
        row["val"] = score(by_classifier(trained.finished, data), data, used, VAL)
    rows = [row | finishing_figures(trained.classifier, trained.postprocess, data, splits)]
    if trained.unrefined is not None:
        rows.append(_unrefined(title, name, trained.unrefined, data, splits, used))
    for name in recipe.baselines:
        if name != recipe.model:
            console.print(f"baseline {name}", highlight=False)
            rows.append(_baseline(name, recipe, data, splits, folder))
    if not recipe.chosen and (better := _better_baseline(rows, recipe)):
        console.print(f"[yellow]{better}[/yellow]", highlight=False)
    size = max(context_size(trained.classifier, trained.postprocess), runs.teacher_size(folder))
    metrics = metrics_of(data, splits, recipe, size, rows, start)
    if recipe.chosen:
        metrics["comparison"] = auto.told(folder)
    write_json(folder / METRICS, metrics)
    if recipe.report:
        console.print("writing the report", highlight=False)
        write_report(folder, data, splits)


def _better_baseline(rows: list[dict[str, Any]], recipe: Recipe) -> str:
    """Say in one line where a baseline is clearly better than the system that was named; else nothing."""
    own = rows[0]["test"]
    others = [row for row in rows if row["name"] in recipe.baselines]
    best = max(others, key=lambda row: float(row["test"]["oa"]), default=None)
    if best is None or own["oa_ci"] is None or best["test"]["oa"] <= own["oa_ci"][1]:
        return ""
    return (
        f"'{best['name']}' is better here (OA {best['test']['oa']:.1%}, '{rows[0]['name']}' {own['oa']:.1%}): --model auto "
        "compares candidates and trains the best"
    )


def _unrefined(
    title: str, name: str, trained: Trained, data: LabelledScenes, splits: Splits, used: Splits
) -> dict[str, Any]:
    """Score a system without its refinement on the same pixels."""
    row = system_row(f"{title}{UNREFINED}", trained, name)
    row |= test_figures(trained.finished, data, splits)
    if used.scenes_with(VAL):
        row["val"] = score(by_classifier(trained.finished, data), data, used, VAL)
    return row


def _baseline(
    name: str, recipe: Recipe, data: LabelledScenes, splits: Splits, folder: Path
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
            "teacher_store": None,
            "refine": "none",
            "refine_args": {},
            "devices": 1,  # the run's other processes have ended
        }
    )
    return fit_and_score(own, data, splits, folder / "baselines" / name)[1]
