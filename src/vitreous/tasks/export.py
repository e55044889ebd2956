"""Trained runs as files for other runtimes, and what computes a product of a scene."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitreous.errors import ConfigError
from vitreous.inference.export import Parity
from vitreous.inference.export_format import RUNTIMES, is_export, sha256
from vitreous.inference.runtimes import Exported, load_exported
from vitreous.tasks import dispatch
from vitreous.tasks.runs import MODEL


@dataclass(frozen=True)
class Written:
    """An export that was made.

    Attributes:
        folder: where it is.
        parity: how well it agrees with the run.
        integer: quantized layers that are written in integers.
        simulated: quantized layers that round floats to floats, which no runtime computes faster.
        refined: whether the run refines or calibrates probabilities, which the graphs do not.
    """

    folder: Path
    parity: Parity
    integer: list[str]
    simulated: list[str]
    refined: bool = False


def export_run(
    path: str | Path, form: str, out: str | Path | None = None, *, single: bool = False
) -> Written:
    """Export a trained run and check the export on the scene or the images of the run.

    Args:
        path: the run folder.
        form: ``onnx``, ``openvino`` or ``torch``.
        out: the folder to write; ``export-<form>`` in the run folder when None.
        single: one graph from the surroundings of a pixel to its class, for other software; maps with it are slower.

    Raises:
        ConfigError: runs of this task are not exported, or have no ``single`` graph.
        ModelError: the run is not a network, or its export does not agree with it; nothing is left then.
        VitreousError: the run cannot be loaded, or its scene not be read.
    """
    folder = Path(out) if out else Path(path) / f"export-{form}"
    parity = dispatch.export(path, form, folder, single=single or None)
    exported = load_exported(folder, trust=True)
    kinds, after = exported.description["quantization"], exported.postprocess
    refined = after is not None and (after.refine or after.temperature) is not None
    return Written(folder, parity, kinds["integer"], kinds["simulated"], refined)


def load_for(path: str | Path, runtime: str | None = None, *, trust: bool = False) -> Any:
    """Load a run of any task or an export, to be computed by a runtime.

    Args:
        path: a run folder, or the folder of an export.
        runtime: see :func:`exported_for`.
        trust: also run programs of torch.export that are not ours.

    Returns:
        The export, or what the task's ``load_run`` gives.

    Raises:
        ConfigError: there is no such runtime, or it is not installed.
        VitreousError: what is there cannot be loaded or exported.
    """
    return exported_for(path, runtime, trust=trust) or dispatch.load_run(path)


def exported_for(
    path: str | Path, runtime: str | None = None, *, trust: bool = False
) -> Exported | None:
    """Load the export that a runtime computes; None where it is the run itself, by torch.

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
        return None
    formats = {name: form for form, name in RUNTIMES.items()}
    if runtime not in formats:
        raise ConfigError(f"Unknown runtime: {runtime}.", f"Choose {', '.join(formats)}.")
    form = formats[runtime]
    folder = Path(path) / f"export-{form}"
    if is_export(folder):
        known = load_exported(folder, runtime)
        if known.description["source"] == sha256(Path(path) / MODEL):
            return known
    return load_exported(export_run(path, form).folder, runtime)
