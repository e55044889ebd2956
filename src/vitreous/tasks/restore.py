"""From a scene to a network that undoes a degradation of it: trained, measured on ground held out, and applied.

The scene is taken as clean. It is cut across its longer side: one part to learn from, one for the learning curve, the
last for the test, where the degraded scene is restored and compared with what it was.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from vitreous.catalog.registry import (
    card,
    check_system,
    check_task,
    create_model,
    system_module,
)
from vitreous.catalog.tasks import build_report_of
from vitreous.checkpoints import headers
from vitreous.checkpoints.model_files import is_model_file, load_model
from vitreous.checkpoints.tensors import load_exactly, save_tensors
from vitreous.data.blocks import TEST, TRAIN, VAL
from vitreous.data.contract import BandContract
from vitreous.data.crops import Area, Crops, sample_spectra
from vitreous.data.degradations import Degradation, degradation
from vitreous.data.provenance import (
    Provenance,
    Seen,
    StartLeakage,
    Tested,
    provenance_from_json,
    provenance_to_json,
    start_leakage_of,
)
from vitreous.errors import ConfigError, ModelError, SceneError
from vitreous.files import checked, read_json, write_json
from vitreous.inference.descriptions import RestorerHeader
from vitreous.inference.export_format import sha256
from vitreous.inference.restore import TILE, SceneRestorer, restored_scene
from vitreous.layers.bands import Bands
from vitreous.layers.ranges import BandRange, fill_invalid
from vitreous.layers.restorer import Restorer
from vitreous.methods._apply import applied, reinstall
from vitreous.progress import progress_bar
from vitreous.recipe import RestoreRecipe
from vitreous.scenes import write_scene
from vitreous.scenes.cube import like_scene, read_window, wavelengths_of
from vitreous.scenes.dead_bands import without_dead_bands
from vitreous.scenes.formats import find_writer
from vitreous.scenes.overwrite import check_overwrite
from vitreous.scenes.samples import open_named
from vitreous.tasks import runs
from vitreous.tasks.provenance import start_provenance
from vitreous.tasks.quality import FEWEST, quality
from vitreous.tasks.runs import CONFIG, METRICS, MODEL, STATE
from vitreous.tasks.sources import Sources, open_sources
from vitreous.tasks.streams import VALIDATED, stream
from vitreous.tasks.training import own_weights

if TYPE_CHECKING:
    from vitreous.inference.export import Parity

TASK = "restore"
PRODUCT = "restored.tif"
SHOWN = 6  # test scenes of a collection in the report
PRODUCTS = "restored"  # folder of the products of several scenes
TEST_SIDE = 512  # pixels: a larger test area is cut to its middle
DEGRADED = "degraded"


@dataclass(frozen=True)
class RestoreRun:
    """A trained restorer, and what it was trained for.

    Attributes:
        path: its folder.
        restorer: the network with its ranges.
        name: the system's name.
        model_args: what differs from the variant's own arguments.
        provenance: the ground that its weights have learned from.
    """

    path: Path
    restorer: SceneRestorer
    name: str
    model_args: dict[str, Any]
    provenance: Provenance

    @property
    def start(self) -> Provenance:
        """The provenance of the weights that its training started from."""
        return runs.before(self.provenance, self.recipe)

    @property
    def recipe(self) -> RestoreRecipe:
        """The settings it was trained with."""
        return runs.recipe_of(self.path, RestoreRecipe)


@dataclass(frozen=True)
class TestCube:
    """What restorers are measured on.

    Attributes:
        clean: ``(bands, height, width)`` physical values, NaN where invalid.
        degraded: the scene that is restored.
        ranges: of the bands.
        scale: how many times coarser the degraded scene is.
    """

    __test__ = False  # for pytest, which takes the name for its own

    clean: Float[Tensor, "bands height width"]
    degraded: xr.DataArray
    ranges: BandRange
    scale: int


def train(
    recipe: RestoreRecipe, *, resume: bool = False, command: str = "", show: bool = True
) -> Path:
    """Train a restorer as the recipe says, measure it, restore the scene itself and write the report.

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
    degrade = check_recipe(recipe)
    trained = runs.is_network(recipe.model)
    recipe = runs.prepared(recipe, console, trained=trained, networks=trained)
    runs.check_start(recipe.init, TASK)
    console.print(f"reading {recipe.source}", highlight=False)
    sources = _sources(recipe, degrade.factor)
    start = start_provenance(recipe.init)
    done = resume and (Path(recipe.runs) / TASK / str(recipe.name) / MODEL).is_file()
    # What cannot be trained is refused before there is a folder for it.
    fresh = None if done else _untrained(recipe, sources)
    name = runs.name_of(recipe)
    config = runs.config_of(TASK, recipe, sources.first, command, sources.fingerprints)
    with runs.started_folder(recipe, config, name, resume=resume) as (folder, first):
        if resume:
            runs.check_unchanged(folder, sources.fingerprints)
        if fresh is None:  # it was stopped after training, before its products
            run = load_run(folder)
            restorer, seconds, start = run.restorer, _seconds(folder), run.start
        else:
            restorer, seconds = _fit(
                recipe, fresh, sources, degrade, folder, resume=resume, show=show
            )
            if not first:
                return folder  # the first process does the rest
            own = (
                Seen.values(TASK, piece.name, piece.ground(), piece.area)
                for piece in sources.pieces[TRAIN]
            )
            _keep(folder, recipe, restorer, seconds, (*start, *own))
        console.print(f"run {folder}", highlight=False)
        begun = _start_leakage(start, sources, degrade.factor)
        for sentence in begun.sentences if begun else ():
            console.print(f"[yellow]{sentence}[/yellow]", highlight=False)
        _measure(folder, recipe, restorer, sources, degrade, begun, console)
        (folder / STATE).unlink(missing_ok=True)
    return folder


def evaluate(path: str | Path) -> dict[str, Any]:
    """Measure a trained restorer again on the test area of its scene.

    Returns:
        The metrics of ``metrics.json``, for the trained system and the degraded scene.
    """
    run = load_run(path)
    opened = reopened(run)
    cubes = opened.cubes(run.restorer)
    rows = [measured(run.restorer, run.name, cubes), untouched(cubes)]
    return opened.metrics(run, cubes, rows)


@dataclass(frozen=True)
class Opened:
    """The scenes of a finished run, opened again.

    Attributes:
        recipe: the run's settings.
        sources: where it trained, validated and tests.
        degrade: what it undoes.
    """

    recipe: RestoreRecipe
    sources: Sources
    degrade: Degradation

    def cubes(self, restorer: SceneRestorer, role: int = TEST) -> list[TestCube]:
        """Return what restorers are measured on, of the test areas or of those of another role."""
        return _cubes(self.recipe, restorer, self.sources, self.degrade, role)

    def metrics(
        self, run: RestoreRun, cubes: list[TestCube], rows: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Return what ``metrics.json`` holds, with some rows of systems."""
        begun = _start_leakage(run.start, self.sources, self.degrade.factor)
        return _metrics(self.recipe, self.sources, self.degrade, cubes, rows, begun)


def reopened(run: RestoreRun) -> Opened:
    """Open the scenes of a finished run again.

    Raises:
        VitreousError: they are others than it was trained on.
    """
    degrade = check_recipe(run.recipe)
    sources = _sources(run.recipe, degrade.factor)
    runs.check_unchanged(run.path, sources.fingerprints)
    return Opened(run.recipe, sources, degrade)


def measured(restorer: SceneRestorer, name: str, cubes: list[TestCube]) -> dict[str, Any]:
    """Return the row of a system on some cubes."""
    return _joined([measure(restorer, name, cube)[0] for cube in cubes])


@dataclass(frozen=True)
class Restored:
    """What became of a scene.

    Attributes:
        path: the file that was written.
        pixels: of it.
        seconds: of restoring and writing.
    """

    path: Path
    pixels: int
    seconds: float

    @property
    def paths(self) -> list[Path]:
        """Every file that was written."""
        return [self.path]


def apply(
    path: str | Path,
    scene: xr.DataArray,
    out: str | Path,
    *,
    runtime: str | None = None,
    trust: bool = False,
) -> Restored:
    """Restore a scene with a run or an export of one.

    Args:
        path: a run folder, or the folder of an export.
        scene: the scene, with the bands that the restorer was trained on; a run also takes others where its network
            does.
        out: a file of a format that scenes are written in.
        runtime: what computes it (:func:`vitreous.tasks.export.load_for`).
        trust: also run programs of torch.export that are not ours.

    Raises:
        ConfigError: it would overwrite the scene itself.
        VitreousError: what is there cannot be loaded, or the scene does not fit it.
    """
    from vitreous.tasks.export import load_for

    find_writer(Path(out))
    check_overwrite(Path(out), scene)
    restorer = load_for(path, runtime, trust=trust).restorer
    started = time.perf_counter()
    with progress_bar("restoring") as advance:
        restored = restored_scene(restorer, scene, advance)
        write_scene(restored, out)
    pixels = restored.sizes["y"] * restored.sizes["x"]
    return Restored(Path(out), pixels, time.perf_counter() - started)


def export(path: str | Path, form: str, folder: str | Path) -> Parity:
    """Write a run as a graph for other runtimes, and check it on tiles of its scene.

    Args:
        path: the run folder.
        form: ``onnx``, ``openvino`` or ``torch``.
        folder: the folder to write.

    Raises:
        ModelError: the format has no operator for what the restorer does, or its export does not agree with it;
            nothing is left then.
        VitreousError: the run cannot be loaded, or its scene not be read.
    """
    from vitreous.inference.export_restorer import RestorerProduct, export_restorer

    run = load_run(path)
    recipe = run.recipe
    scene = without_dead_bands(open_named(recipe.scene, recipe.scene_hints).scene)
    source = sha256(run.path / MODEL)
    product = RestorerProduct(run.restorer, run.name, source, run.provenance, TASK)
    return export_restorer(product, folder, form=form, scene=scene)


def check_recipe(recipe: RestoreRecipe) -> Degradation:
    """Refuse what cannot be trained or compared now, not after an hour, and return what is to be undone.

    Raises:
        ConfigError: a system that does not restore, or whose scale is not the degradation's; a baseline that would
            have to be trained, or has another scale.
        ModelError: there is no such system.
    """
    scale = _scale_of(recipe.model, recipe.model_args)
    name = _degradation_name(recipe, scale)
    settings = dict(recipe.degradation_args)
    if name == "downsample" and scale > 1:
        settings.setdefault("scale", scale)
    degrade = degradation(name, settings)
    for system in recipe.baselines or []:
        _check_baseline(system, scale)
    if degrade.factor != scale:
        raise ConfigError(
            f"The scale of {recipe.model} is {scale}, but '{name}' makes the scene {degrade.factor} times coarser.",
            "Use a model of that scale (some take --model-args scale=2), or another degradation.",
        )
    return degrade


def load_run(path: str | Path) -> RestoreRun:
    """Load a trained restorer.

    Raises:
        CheckpointError: the folder holds no finished run of one, or its checkpoint is damaged.
    """
    path = Path(path)
    with runs.checkpoint(path, TASK) as (tensors, header):
        checked(RestorerHeader, header, path / MODEL, "Restore the file, or train again.")
        headers.check_counts(header["model_args"], tensors)
        contract = BandContract.from_json(header["contract"])
        with torch.device("meta"):
            net = create_model(header["name"], bands=len(contract.used), **header["model_args"])
            reinstall(net, header.get("methods", []))  # older files have none
            ranges = BandRange(len(contract.used))
        assert isinstance(net, Restorer)
        restorer = SceneRestorer(net, ranges, contract, **header["settings"])
        load_exactly(restorer, tensors, header["name"])
        known = provenance_from_json(header.get(headers.PROVENANCE), path.name)
        return RestoreRun(path, restorer.eval(), header["name"], header["model_args"], known)


def measure(
    restorer: SceneRestorer, name: str, cube: TestCube
) -> tuple[dict[str, Any], Float[Tensor, "bands height width"]]:
    """Restore the degraded test scene, and say how well and how fast.

    Returns:
        The row of ``metrics.json``, and the restored cube in physical values.
    """
    # Its bands are those that the restorer takes, whatever the whole scene has.
    own = SceneRestorer(
        restorer.net, cube.ranges, BandContract.of(cube.degraded), **restorer.settings()
    )
    started = time.perf_counter()
    restored = torch.from_numpy(restored_scene(own, cube.degraded, check_values=False).values)
    return _row(name, restorer.net, cube, restored, time.perf_counter() - started), restored


def _row(
    name: str, net: Restorer, cube: TestCube, restored: Tensor, seconds: float
) -> dict[str, Any]:
    return {
        "name": name,
        "kind": card(name).kind,
        "parameters": sum(p.numel() for p in net.parameters()) or None,
        "train_seconds": None,
        "pixels_per_second": restored[0].numel() / seconds,
        "test": quality(restored, cube.clean, cube.ranges, cube.scale),
    }


def test_cube(
    recipe: RestoreRecipe,
    restorer: SceneRestorer,
    scene: xr.DataArray,
    area: Area,
    degrade: Degradation,
) -> TestCube:
    """Degrade the test area, as seen with the recipe's seed."""
    fitted, bands = restorer.fitted(scene)
    rows, columns = (_middle(span, degrade.factor) for span in area)
    clean = torch.from_numpy(read_window(scene, rows, columns, bands))
    filled, valid = fill_invalid(clean)
    spoilt = degrade(fitted.ranges(filled), stream(recipe.seed, VALIDATED))
    values = fitted.ranges.inverse(spoilt)
    if degrade.factor == 1:
        values[:, ~valid] = torch.nan
    place = scene.isel(y=rows, x=columns)
    degraded = like_scene(place, values.numpy(), bands, 1 / degrade.factor)
    return TestCube(clean, degraded, fitted.ranges, degrade.factor)


test_cube.__test__ = False  # type: ignore[attr-defined]  # for pytest, which takes the name for its own


# -- steps of train ---------------------------------------------------------------------------------------


def _scale_of(name: str, model_args: dict[str, Any]) -> int:
    """Return how many times finer a system makes a scene.

    Raises:
        ConfigError: it does not restore.
    """
    check_task(name, TASK)
    net = check_system(name, model_args)
    assert isinstance(net, Restorer)
    return net.scale


def _degradation_name(recipe: RestoreRecipe, scale: int) -> str:
    """Return the degradation to remove: that of the recipe, or one that fits a model of this scale."""
    return recipe.degradation or ("downsample" if scale > 1 else "gaussian")


def _check_baseline(name: str, scale: int) -> None:
    """Refuse a system that cannot be compared with as it is.

    Raises:
        ConfigError: it would have to be trained, or its scale is another one.
        ModelError: there is no such system, or its package is missing.
    """
    check_task(name, TASK, baseline=True)
    takes_scale = "scale" in inspect.signature(system_module(name).build).parameters
    if takes_scale != (scale > 1):
        raise ConfigError(
            f"The baseline '{name}' does not work at scale {scale}.",
            "Omit --baselines to use the filters that apply.",
        )
    create_model(name, bands=1, **_baseline_args(scale))


def _baseline_args(scale: int) -> dict[str, Any]:
    return {"scale": scale} if scale > 1 else {}


def _sources(recipe: RestoreRecipe, factor: int) -> Sources:
    """Return where to train, validate and test.

    Raises:
        SceneError: crops do not fit into what trains, or a test area is too small or has no valid pixels.
    """
    side = recipe.crop * factor
    sources = open_sources(recipe, max(side, FEWEST))
    for piece in sources.pieces[TRAIN]:
        scene = piece.open()
        bands = sources.contract.select(scene)
        Crops(scene, bands, piece.area, side)  # refuses what does not fit
    for piece in sources.pieces[TEST]:
        place = Area(*(_middle(span, factor) for span in piece.area))
        if min(place.shape) < FEWEST:
            raise SceneError(
                f"The test area would have {place.shape[0]} x {place.shape[1]} pixels.",
                f"Restorers are compared on at least {FEWEST} x {FEWEST}: raise test_fraction.",
            )
        scene = piece.open()
        if not len(sample_spectra(scene, sources.contract.select(scene), place)):
            raise SceneError(
                f"The test area{f' of {piece.name}' if sources.many else ''} has almost no valid pixels.",
                "Change test_fraction, or check the scene's no-data value with 'vitreous info'.",
            )
    return sources


def _untrained(recipe: RestoreRecipe, sources: Sources) -> SceneRestorer:
    """Return what is to be trained: fresh, or as the run or model file holds it that it starts from."""
    torch.manual_seed(recipe.seed)
    scene = sources.first
    if recipe.init is None or is_model_file(recipe.init):
        net = _network(recipe, sources.contract.spectrum)
        spectra = sources.spectra()
        ranges = BandRange.fit(spectra, recipe.range)
        contract = sources.contract.measured(spectra)
    else:  # its bands and ranges come along, in its order
        run = _start(recipe)
        own_weights(run.restorer)
        start, _ = run.restorer.fitted(scene)
        start.contract.check_values(scene)
        net, ranges = start.net, start.ranges
        contract = start.contract.measured(_spectra_for(start.contract, sources))
    size = recipe.crop if net.size_matters else max(recipe.crop, TILE)
    size = -(-size // 4) * 4
    return SceneRestorer(net.train(), ranges, contract, tile_size=size, per=recipe.range)


def _spectra_for(contract: BandContract, sources: Sources) -> npt.NDArray[np.float32]:
    """Return spectra of training ground in the bands of the run that training starts from."""
    return replace(sources, contract=contract).spectra()


def _fit(
    recipe: RestoreRecipe,
    fresh: SceneRestorer,
    sources: Sources,
    degrade: Degradation,
    folder: Path,
    *,
    resume: bool,
    show: bool,
) -> tuple[SceneRestorer, float]:
    """Return the trained restorer, and how many seconds it took."""
    if not runs.is_network(recipe.model):
        return fresh, 0.0
    own = replace(sources, contract=fresh.contract)
    crops, val = (own.crops(role, recipe.crop * degrade.factor) for role in (TRAIN, VAL))
    assert crops is not None
    from vitreous.tasks.fit_restorer import RestoreTask
    from vitreous.tasks.loop import fit

    task = RestoreTask(fresh.net, recipe, crops, val, fresh.ranges, degrade)
    fit(task, folder, resume=resume, show=show)
    trained = task.result()
    assert isinstance(trained, Restorer)
    restorer = SceneRestorer(trained, fresh.ranges, fresh.contract, **fresh.settings())
    return restorer, task.elapsed


def train_further(
    restorer: SceneRestorer,
    opened: Opened,
    folder: Path,
    *,
    epochs: int,
    rate: float,
    show: bool,
) -> SceneRestorer:
    """Train a restorer on as it is.

    Args:
        restorer: changed in place.
        opened: its scenes.
        folder: for the state while it trains.
        epochs: of training.
        rate: learning rate, as a share of the recipe's.
        show: print progress.
    """
    from vitreous.tasks.unlabelled import EPOCH_STEPS

    changes = {
        "steps": epochs * EPOCH_STEPS,
        "learning_rate": rate * opened.recipe.learning_rate,
        "devices": 1,
    }
    own_weights(restorer)
    torch.manual_seed(opened.recipe.seed)
    own = opened.recipe.model_copy(update=changes)
    sources, degrade = opened.sources, opened.degrade
    return _fit(own, restorer, sources, degrade, folder, resume=False, show=show)[0]


def _start(recipe: RestoreRecipe) -> RestoreRun:
    """Load the run to start from, and refuse another model."""
    start = load_run(str(recipe.init))
    _check_start(recipe, start.name, start.model_args)
    return start


def _network(recipe: RestoreRecipe, bands: Bands) -> Restorer:
    """Return the network for some bands, fresh or of the model file that it starts from."""
    if recipe.init is None:
        net = create_model(recipe.model, bands=bands, **recipe.model_args)
    else:
        net, report = load_model(recipe.init, bands=bands)
        _check_start(recipe, report.made.name, report.made.model_args)
    assert isinstance(net, Restorer)
    return net


def _check_start(recipe: RestoreRecipe, name: str, model_args: dict[str, Any]) -> None:
    """Refuse to start from another model than the recipe's.

    Raises:
        ModelError: it is another one.
    """
    if (name, model_args) != (recipe.model, recipe.model_args):
        raise ModelError(
            f"{recipe.init} holds '{name}' with {model_args or 'its own arguments'}, "
            f"not '{recipe.model}' with {recipe.model_args or 'its own'}.",
            f"Use --model {name} with the same arguments.",
        )


def _start_leakage(start: Provenance, sources: Sources, factor: int) -> StartLeakage | None:
    """Say what the weights that training starts from have seen of the test areas; None where it starts from nothing."""
    if not start:
        return None
    tested = []
    for piece in sources.pieces[TEST]:
        place = Area(*(_middle(span, factor) for span in piece.area))
        tested.append(Tested(place.pixels(piece.open().sizes["x"]), piece.ground()))
    return start_leakage_of(start, tested)[0]


def _cubes(
    recipe: RestoreRecipe,
    restorer: SceneRestorer,
    sources: Sources,
    degrade: Degradation,
    role: int = TEST,
) -> list[TestCube]:
    """Return the degraded test area of the scene, or those of the test scenes; or of another role."""
    return [
        test_cube(recipe, restorer, piece.open(), piece.area, degrade)
        for piece in sources.pieces[role]
    ]


def _joined(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the rows of one system on several test scenes: the mean of their figures, every scene counting alike."""
    if len(rows) == 1:
        return rows[0]
    tests = [row["test"] for row in rows]
    mean = {name: _mean([test[name] for test in tests]) for name in tests[0]}
    speeds = [row["pixels_per_second"] for row in rows]
    speed = None if None in speeds else float(np.mean(speeds))
    return {**rows[0], "pixels_per_second": speed, "test": {**mean, "scenes": tests}}


def _mean(values: list[Any]) -> Any:
    known = [value for value in values if value is not None]
    return np.mean(known, axis=0).tolist() if known else None


def _keep(
    folder: Path,
    recipe: RestoreRecipe,
    restorer: SceneRestorer,
    seconds: float,
    provenance: Provenance,
) -> None:
    config = read_json(folder / CONFIG)
    config["model"] = {"name": recipe.model, "train_seconds": seconds}
    write_json(folder / CONFIG, config)
    save_restorer(folder, restorer, recipe.model, recipe.model_args, provenance)


def save_restorer(
    folder: Path,
    restorer: SceneRestorer,
    name: str,
    model_args: dict[str, Any],
    provenance: Provenance,
) -> None:
    """Write ``model.safetensors``: everything that is needed to restore a raw scene."""
    header = {
        "schema": headers.SCHEMA,
        "kind": card(name).kind,
        "name": name,
        "model_args": model_args,
        "methods": applied(restorer.net),
        "contract": restorer.contract.to_json(),
        "settings": restorer.settings(),
        headers.PROVENANCE: provenance_to_json(provenance),
    }
    save_tensors(folder / MODEL, restorer.state_dict(), header)


def _seconds(folder: Path) -> float:
    return runs.figures_of(folder).train_seconds


def _measure(
    folder: Path,
    recipe: RestoreRecipe,
    restorer: SceneRestorer,
    sources: Sources,
    degrade: Degradation,
    begun: StartLeakage | None,
    console: Console,
) -> None:
    """Compare with the baselines on the test areas, restore the scenes, and write metrics and report."""
    cubes = _cubes(recipe, restorer, sources, degrade)
    done = [measure(restorer, recipe.model, cube) for cube in cubes]
    row = _joined([one for one, _ in done])
    row["train_seconds"] = _seconds(folder)
    rows = [row]
    if degrade.factor == 1:
        rows.append(untouched(cubes))
    for name in baselines_of(recipe, degrade):
        console.print(f"baseline {name}", highlight=False)
        rows.append(_joined([_baseline(name, cube) for cube in cubes]))
    write_json(folder / METRICS, _metrics(recipe, sources, degrade, cubes, rows, begun))
    if recipe.product:
        write_products(folder, restorer, sources, console)
    if recipe.report:
        console.print("writing the report", highlight=False)
        write_report(folder, sources, cubes, [restored for _, restored in done])


def write_products(
    folder: Path, restorer: SceneRestorer, sources: Sources, console: Console
) -> None:
    """Restore the scene, or all test scenes of a collection."""
    for k, piece in enumerate(sources.pieces[TEST]):
        path = (
            folder / PRODUCT
            if not sources.many
            else folder / PRODUCTS / f"{k}-{Path(piece.name).stem}.tif"
        )
        path.parent.mkdir(exist_ok=True)
        with progress_bar("restoring", console) as advance:
            restored = restored_scene(restorer, piece.open(), advance, check_values=False)
            write_scene(restored, path)


def write_report(
    folder: Path, sources: Sources, cubes: Sequence[TestCube], restored: Sequence[Tensor]
) -> None:
    """Write the report of a run; of a collection some of its test scenes are shown."""
    from vitreous.report.restoration import ShownArea

    areas = [
        ShownArea(piece.open(), cube.clean.numpy(), cube.degraded.values, values.numpy())
        for piece, cube, values in zip(sources.pieces[TEST][:SHOWN], cubes, restored, strict=False)
    ]
    build_report_of(TASK)(folder, *areas[0], areas[1:])


def untouched(cubes: list[TestCube]) -> dict[str, Any]:
    """Return the row of the degraded scenes as they are."""
    return _joined([_untouched(cube) for cube in cubes])


def baselines_of(recipe: RestoreRecipe, degrade: Degradation) -> list[str]:
    """Return the filters to compare with: those of the recipe, or those that fit and are installed."""
    if recipe.baselines is not None:
        return [name for name in recipe.baselines if name != recipe.model]
    if degrade.factor > 1:
        return [name for name in ("bicubic",) if name != recipe.model]
    chosen = []
    for name in ("low_rank", "wavelet", "wavelet_pca", "total_variation"):
        try:
            create_model(name, bands=1)
        except ModelError:  # its package is missing, which is no reason not to train
            continue
        chosen.append(name)
    return [name for name in chosen if name != recipe.model]


def _baseline(name: str, cube: TestCube) -> dict[str, Any]:
    """Return the row of a filter, which sees the whole area at once: it knows its noise the better."""
    net = create_model(name, bands=cube.degraded.sizes["band"], **_baseline_args(cube.scale))
    assert isinstance(net, Restorer)
    whole = SceneRestorer(net, cube.ranges, BandContract.of(cube.degraded))
    started = time.perf_counter()
    restored = whole.restore_tiles(torch.from_numpy(cube.degraded.values)[None])[0]
    return _row(name, net, cube, restored, time.perf_counter() - started)


def _untouched(cube: TestCube) -> dict[str, Any]:
    """Return the row of the degraded scene as it is, or enlarged where it is coarser."""
    degraded = torch.from_numpy(cube.degraded.values)
    if cube.scale > 1:
        enlarge = create_model("bicubic", bands=len(degraded), scale=cube.scale)
        degraded = enlarge(degraded[None])[0]
    return {
        "name": DEGRADED,
        "kind": "input",
        "parameters": None,
        "train_seconds": None,
        "pixels_per_second": None,
        "test": quality(degraded, cube.clean, cube.ranges, cube.scale),
    }


def _metrics(
    recipe: RestoreRecipe,
    sources: Sources,
    degrade: Degradation,
    cubes: list[TestCube],
    rows: list[dict[str, Any]],
    begun: StartLeakage | None,
) -> dict[str, Any]:
    cube = cubes[0]
    named = ((TRAIN, "train"), (VAL, "val"), (TEST, "test"))
    where: dict[str, Any] = {"areas": {}}
    if sources.many:
        where["scenes"] = [
            {"name": piece.name, "role": name}
            for role, name in named
            for piece in sources.pieces[role]
        ]
    else:
        where["areas"] = {name: sources.pieces[role][0].area.to_json() for role, name in named}
    centres = wavelengths_of(cube.degraded)
    return {
        "schema": 1,
        "task": TASK,
        "degradation": {
            "name": _degradation_name(recipe, degrade.factor),
            "settings": vars(degrade),
        },
        "scale": degrade.factor,
        **where,
        "leakage": begun.share if begun else 0.0,
        "optimistic": bool(begun and begun.share > 0),
        "start": begun.to_json() if begun else None,
        "test_pixels": sum(int(one.clean[0].isfinite().sum()) for one in cubes),
        "bands": cube.clean.shape[0],
        "wavelengths": None if centres is None else [float(c) for c in centres],
        "systems": rows,
    }


def _middle(span: slice, factor: int) -> slice:
    """Return at most ``TEST_SIDE`` pixels in the middle of a span, a multiple of ``factor``."""
    side = min(span.stop - span.start, TEST_SIDE) // factor * factor
    first = span.start + (span.stop - span.start - side) // 2
    return slice(first, first + side)
