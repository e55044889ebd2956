"""vitreous: spectral images of any bands, from a scene file to a trained model, a map and a report.

The names below are loaded when they are first used (PEP 562), so that ``import vitreous`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vitreous._version import __version__

if TYPE_CHECKING:
    from vitreous.catalog.registry import card as model_card  # noqa: F401
    from vitreous.catalog.registry import create_model as create_model
    from vitreous.catalog.registry import from_reference as from_reference
    from vitreous.catalog.registry import list_models as list_models
    from vitreous.errors import VitreousError as VitreousError
    from vitreous.inference.predict import predict_scene as predict_scene
    from vitreous.inference.runtimes import load_exported as load_exported
    from vitreous.layers.bands import Bands as Bands
    from vitreous.layers.bands import adapt_bands as adapt_bands
    from vitreous.methods._apply import apply as apply
    from vitreous.recipe import Recipe as Recipe
    from vitreous.recipe import load_recipe as load_recipe
    from vitreous.recipe import make_recipe as make_recipe
    from vitreous.scenes import open_labels as open_labels
    from vitreous.scenes import open_scene as open_scene
    from vitreous.scenes import write_scene as write_scene
    from vitreous.scenes.resample import resample as resample
    from vitreous.scenes.samples import load_sample as load_sample
    from vitreous.tasks.classify import evaluate as evaluate
    from vitreous.tasks.classify import train as train
    from vitreous.tasks.export import export_run as export_run
    from vitreous.tasks.runs import load_run as load_run
    from vitreous.tasks.weights import convert as convert
    from vitreous.tasks.weights import load_model as load_model
    from vitreous.tasks.weights import save_model as save_model

# Where each name lives; a home ends in ``:name`` where it has another name there.
_HOMES = {
    "Bands": "vitreous.layers.bands",
    "Recipe": "vitreous.recipe",
    "VitreousError": "vitreous.errors",
    "adapt_bands": "vitreous.layers.bands",
    "apply": "vitreous.methods._apply",
    "convert": "vitreous.tasks.weights",
    "create_model": "vitreous.catalog.registry",
    "evaluate": "vitreous.tasks.classify",
    "export_run": "vitreous.tasks.export",
    "from_reference": "vitreous.catalog.registry",
    "list_models": "vitreous.catalog.registry",
    "load_exported": "vitreous.inference.runtimes",
    "load_model": "vitreous.tasks.weights",
    "load_recipe": "vitreous.recipe",
    "load_run": "vitreous.tasks.runs",
    "load_sample": "vitreous.scenes.samples",
    "make_recipe": "vitreous.recipe",
    "model_card": "vitreous.catalog.registry:card",
    "open_labels": "vitreous.scenes",
    "open_scene": "vitreous.scenes",
    "predict_scene": "vitreous.inference.predict",
    "resample": "vitreous.scenes.resample",
    "save_model": "vitreous.tasks.weights",
    "train": "vitreous.tasks.classify",
    "write_scene": "vitreous.scenes",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitreous' has no attribute '{name}'")
    home, _, there = _HOMES[name].partition(":")
    return getattr(importlib.import_module(home), there or name)


def __dir__() -> list[str]:
    return sorted(__all__)
