"""vitreous: spectral images of any bands, from a scene file to a trained model, a map and a report.

The names below are loaded when they are first used (PEP 562), so that ``import vitreous`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vitreous._version import __version__

if TYPE_CHECKING:
    from vitreous.analysis.table import analyse as analyse
    from vitreous.catalog.card import Card as Card
    from vitreous.catalog.registry import card as model_card  # noqa: F401
    from vitreous.catalog.registry import create_model as create_model
    from vitreous.catalog.registry import from_reference as from_reference
    from vitreous.catalog.registry import list_models as list_models
    from vitreous.checkpoints.convert import convert as convert
    from vitreous.checkpoints.model_files import load_model as load_model
    from vitreous.checkpoints.model_files import save_model as save_model
    from vitreous.data.degradations import degradation as degradation
    from vitreous.data.degradations import degraded_scene as degraded_scene
    from vitreous.errors import VitreousError as VitreousError
    from vitreous.inference.bench import bench_model as bench_model
    from vitreous.inference.cost import count_cost as count_cost
    from vitreous.inference.predict import predict_scene as predict_scene
    from vitreous.inference.restore import restored_scene as restored_scene
    from vitreous.inference.runtimes import load_exported as load_exported
    from vitreous.layers.bands import Bands as Bands
    from vitreous.layers.bands import adapt_bands as adapt_bands
    from vitreous.methods._apply import apply as apply
    from vitreous.recipe import PretrainRecipe as PretrainRecipe
    from vitreous.recipe import Recipe as Recipe
    from vitreous.recipe import RecognizeRecipe as RecognizeRecipe
    from vitreous.recipe import RestoreRecipe as RestoreRecipe
    from vitreous.recipe import load_recipe as load_recipe
    from vitreous.recipe import make_recipe as make_recipe
    from vitreous.scenes import open_labels as open_labels
    from vitreous.scenes import open_scene as open_scene
    from vitreous.scenes import write_scene as write_scene
    from vitreous.scenes.resample import resample as resample
    from vitreous.scenes.samples import load_sample as load_sample
    from vitreous.tasks.bench import bench_run as bench_run
    from vitreous.tasks.classify import train as train
    from vitreous.tasks.compress import compress as compress
    from vitreous.tasks.dispatch import evaluate as evaluate
    from vitreous.tasks.dispatch import load_run as load_run
    from vitreous.tasks.dispatch import predict as predict
    from vitreous.tasks.dispatch import predict_collection as predict_collection
    from vitreous.tasks.export import export_run as export_run
    from vitreous.tasks.pretrain import train as pretrain  # noqa: F401
    from vitreous.tasks.recognize import train as recognize  # noqa: F401
    from vitreous.tasks.restore import train as restore  # noqa: F401

# Where each name lives; a home ends in ``:name`` where it has another name there. What the command line does has the
# name of its verb, with a noun where that alone would not tell what it is done to.
_HOMES = {
    # scenes
    "open_scene": "vitreous.scenes",
    "open_labels": "vitreous.scenes",
    "write_scene": "vitreous.scenes",
    "load_sample": "vitreous.scenes.samples",
    "resample": "vitreous.scenes.resample",
    "degradation": "vitreous.data.degradations",
    "degraded_scene": "vitreous.data.degradations",
    "analyse": "vitreous.analysis.table",
    # training
    "Recipe": "vitreous.recipe",
    "RestoreRecipe": "vitreous.recipe",
    "PretrainRecipe": "vitreous.recipe",
    "RecognizeRecipe": "vitreous.recipe",
    "make_recipe": "vitreous.recipe",
    "load_recipe": "vitreous.recipe",
    "train": "vitreous.tasks.classify",
    "restore": "vitreous.tasks.restore:train",
    "pretrain": "vitreous.tasks.pretrain:train",
    "recognize": "vitreous.tasks.recognize:train",
    # runs
    "load_run": "vitreous.tasks.dispatch",
    "evaluate": "vitreous.tasks.dispatch",
    "predict": "vitreous.tasks.dispatch",
    "predict_collection": "vitreous.tasks.dispatch",
    "predict_scene": "vitreous.inference.predict",
    "restored_scene": "vitreous.inference.restore",
    "compress": "vitreous.tasks.compress",
    "export_run": "vitreous.tasks.export",
    "load_exported": "vitreous.inference.runtimes",
    # models and methods
    "Card": "vitreous.catalog.card",
    "list_models": "vitreous.catalog.registry",
    "model_card": "vitreous.catalog.registry:card",
    "create_model": "vitreous.catalog.registry",
    "from_reference": "vitreous.catalog.registry",
    "apply": "vitreous.methods._apply",
    "Bands": "vitreous.layers.bands",
    "adapt_bands": "vitreous.layers.bands",
    "load_model": "vitreous.checkpoints.model_files",
    "save_model": "vitreous.checkpoints.model_files",
    "convert": "vitreous.checkpoints.convert",
    # measurements
    "bench_model": "vitreous.inference.bench",
    "bench_run": "vitreous.tasks.bench",
    "count_cost": "vitreous.inference.cost",
    "VitreousError": "vitreous.errors",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitreous' has no attribute '{name}'")
    home, _, there = _HOMES[name].partition(":")
    return getattr(importlib.import_module(home), there or name)


def __dir__() -> list[str]:
    return sorted(__all__)
