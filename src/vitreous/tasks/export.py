"""Trained runs as files for other runtimes, and what computes a map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitreous.data.blocks import TEST
from vitreous.data.roles import Split
from vitreous.errors import ConfigError, ModelError
from vitreous.inference.export import RUNTIMES, Parity, Product, export, sha256
from vitreous.inference.runtimes import Exported, is_export, load_exported
from vitreous.tasks.division import fitting
from vitreous.tasks.labelled import LabelledScene, open_data
from vitreous.tasks.runs import MODEL, Network, Run, load_run


@dataclass(frozen=True)
class Written:
    """An export that was made.

    Attributes:
        folder: where it is.
        parity: how well it agrees with the run.
        integer: quantized layers that are written in integers.
        simulated: quantized layers that round floats to floats, which no runtime computes faster.
    """

    folder: Path
    parity: Parity
    integer: list[str]
    simulated: list[str]


def export_run(
    path: str | Path, form: str, output: str | Path | None = None, *, single: bool = False
) -> Written:
    """Export a trained run and check the export on test pixels of its scene.

    Args:
        path: the run folder.
        form: ``onnx``, ``openvino`` or ``torch``.
        output: the folder to write; ``export-<form>`` in the run folder when None.
        single: one graph from the surroundings of a pixel to its class, for other software; maps with it are slower.

    Raises:
        ModelError: the run is not a network, or its export does not agree with it; nothing is left then.
        VitreousError: the run cannot be loaded, or its scene not be read.
    """
    run = load_run(path)
    classifier = run.classifier
    if not isinstance(classifier, Network):
        raise ModelError(
            f"'{run.name}' is not a network; only networks can be exported.",
            "Use the run itself: vitreous predict.",
        )
    data, split = test_scene(run)
    folder = Path(output) if output else run.path / f"export-{form}"
    source = sha256(run.path / MODEL)
    product = Product(
        classifier,
        run.name,
        run.class_names,
        run.class_colors,
        source,
        run.provenance,
        run.class_codes,
    )
    parity = export(
        product, folder, form=form, scene=data.scene, pixels=split.pixels(TEST), single=single
    )
    kinds = load_exported(folder, trust=True).description["quantization"]
    return Written(folder, parity, kinds["integer"], kinds["simulated"])


def test_scene(run: Run) -> tuple[LabelledScene, Split]:
    """Open a scene that a run was tested on, of several the first, with its labels and its split."""
    data = open_data(run.recipe)
    splits = fitting(run.splits, data)
    index = splits.scenes_with(TEST)[0]
    return data[index], splits[index]


test_scene.__test__ = False  # type: ignore[attr-defined]  # for pytest, which takes the name for its own


def load_for(
    path: str | Path, runtime: str | None = None, *, trust: bool = False
) -> Run | Exported:
    """Load a run or an export, to be computed by a runtime.

    Args:
        path: a run folder, or the folder of an export.
        runtime: ``torch``, ``onnxruntime`` or ``openvino``; what it was made for when None. A run is exported for the
            last two, in its own folder, unless that has been done since it was trained.
        trust: also run programs of torch.export that are not ours.

    Raises:
        ConfigError: there is no such runtime, or it is not installed.
        VitreousError: what is there cannot be loaded or exported.
    """
    if is_export(path):
        return load_exported(path, runtime, trust=trust)
    if runtime is None or runtime == "torch":
        return load_run(path)
    formats = {name: form for form, name in RUNTIMES.items()}
    if runtime not in formats:
        raise ConfigError(f"There is no runtime '{runtime}'.", f"Choose {', '.join(formats)}.")
    form = formats[runtime]
    folder = Path(path) / f"export-{form}"
    if is_export(folder):
        known = load_exported(folder, runtime)
        if known.description["source"] == sha256(Path(path) / MODEL):
            return known
    return load_exported(export_run(path, form).folder, runtime)
