"""What is done to a model, by name: one call for every method, noted on the model so that a file can repeat it.

A method is a file ``methods/<stage>/<slug>.py`` with its card and

    install(model, **settings) -> rows           changes the structure in place and says what it touched;
                                                 works without memory (meta device): a file fills in the tensors
    calibrate(model, batches, **settings) -> rows    where the method measures activations (optional); one row
                                                 per layer, in place of those of ``install``

Both raise ModelError where the method cannot serve the model. Stages follow one another (``STAGES``): a model is
adapted (trained on), then parts are pruned, then its tokens are reduced, then it is made robust, then quantized; never
the other way round and no stage twice. Methods of ``TRAINING_STAGES`` act while a model is trained and leave nothing in it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import check_values
from vitreous.catalog.registry import STAGES, TRAINING_STAGES, card, stage, system_module
from vitreous.errors import ModelError, did_you_mean

M = TypeVar("M", bound=nn.Module)
FEWEST_IMAGES = 8  # for calibration: quantiles of less say nothing


@dataclass(frozen=True)
class Report:
    """What a method has done.

    Attributes:
        method: its name.
        settings: all of its settings, JSON-ready.
        rows: one row per part that was touched.
    """

    method: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]]


class Applied(NamedTuple):
    """A changed model and what was done to it."""

    model: nn.Module
    report: Report


def apply(
    model: nn.Module,
    name: str,
    *,
    calibration: Sequence[Float[Tensor, "_ ..."]] | None = None,
    **settings: Any,
) -> Applied:
    """Return a changed copy of a model, and a report.

    Args:
        model: any network; what has been applied to it before is kept.
        name: a method or one of its variants (``vitreous methods`` lists them).
        calibration: batches of inputs as the model gets them at inference; asked for by methods that measure activations.
        settings: the method's settings, where they differ from the variant's.

    Raises:
        ModelError: no such method or setting, one that cannot serve this model or comes too late, or calibration
            data that is missing, too little, not finite or of a shape that the model does not take.
    """
    module, complete = _resolve(name, settings)
    _check_stage(model, name)
    calibrate = getattr(module, "calibrate", None)
    if calibrate is not None:
        _check_calibration(model, name, calibration)
    changed = copy.deepcopy(model)
    try:
        rows = module.install(changed, **complete)
    except (TypeError, ValueError, ArithmeticError) as error:
        if not settings:
            raise
        raise ModelError(
            f"{name} cannot be applied with {settings}: {error}.", "Change or drop these settings."
        ) from error
    if calibrate is not None:
        training = changed.training
        rows = calibrate(changed.eval(), calibration, **complete)
        changed.train(training)
    _note(changed, name, complete)
    return Applied(changed, Report(name, complete, rows))


def reinstall(model: M, methods: Sequence[dict[str, Any]]) -> M:
    """Give a freshly built model the structure that methods have left; its tensors are loaded afterwards.

    Args:
        model: the plain model, changed in place.
        methods: what :func:`applied` said of the model that was saved.

    Raises:
        ModelError: this is no list of methods that a model can have.
    """
    if len(methods) > len(STAGES):
        raise ModelError(
            f"{len(methods)} methods are more than a model can have.", "Restore the file."
        )
    methods, model.methods = [*methods], []  # type: ignore[assignment]
    for entry in methods:
        module, settings = _resolve(entry["name"], entry["settings"])
        module.install(model, **settings)
        _note(model, entry["name"], settings)
    return model


def applied(model: nn.Module) -> list[dict[str, Any]]:
    """Return what was applied to a model, first to last: ``{"name", "settings"}``, JSON-ready."""
    found: list[dict[str, Any]] = getattr(model, "methods", [])
    return found


def complete_settings(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return all settings of a method, where they do not differ those of the variant.

    Args:
        name: a method or one of its variants.
        changes: what differs.

    Raises:
        ModelError: no such method or setting (with the nearest known one).
    """
    return _resolve(name, changes)[1]


def has(model: nn.Module, wanted: str) -> bool:
    """Tell whether a method of a stage was applied."""
    return any(stage(entry["name"]) == wanted for entry in applied(model))


def _resolve(name: str, changes: dict[str, Any]) -> tuple[ModuleType, dict[str, Any]]:
    """Return a method's file and its complete settings."""
    entry = card(name)
    if entry.kind != "method":
        raise ModelError(
            f"'{name}' is not a method (kind: {entry.kind}).",
            "'vitreous methods' lists the methods.",
        )
    if name not in entry.variants:
        raise ModelError(
            f"'{name}' has several variants.", f"Choose one of {', '.join(entry.variants)}."
        )
    module = system_module(name)
    takes = module.loss if stage(name) in TRAINING_STAGES else module.install
    known = {
        key: parameter.default
        for key, parameter in inspect.signature(takes).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for key in changes:
        if key not in known:
            raise ModelError(f"{name} has no setting '{key}'.", did_you_mean(key, known))
    check_values(name, takes, changes)
    complete = {**known, **entry.variants[name], **changes}
    return module, {
        key: list(value) if isinstance(value, tuple) else value for key, value in complete.items()
    }


def _note(model: nn.Module, name: str, settings: dict[str, Any]) -> None:
    model.methods = [*applied(model), {"name": name, "settings": settings}]  # type: ignore[assignment]


def _check_stage(model: nn.Module, name: str) -> None:
    """Refuse a method that comes after a later one, or beside one of its own stage."""
    own = stage(name)
    if own in TRAINING_STAGES:
        raise ModelError(
            f"'{name}' acts while a model is trained.",
            f"Give it to 'vitreous train --{own}'.",
        )
    for entry in applied(model):
        other = stage(entry["name"])
        if STAGES.index(other) == STAGES.index(own):
            raise ModelError(
                f"The model already has '{entry['name']}', which cannot be combined with '{name}'.",
                "Apply only one of them.",
            )
        if STAGES.index(other) > STAGES.index(own):
            raise ModelError(
                f"'{name}' cannot be applied after '{entry['name']}'.",
                f"The order is {', '.join(STAGES)}.",
            )


def _check_calibration(model: nn.Module, name: str, batches: Sequence[Tensor] | None) -> None:
    """Refuse calibration data that would calibrate nothing, or wrongly."""
    if batches is None or len(batches) == 0:
        raise ModelError(
            f"'{name}' needs calibration data to measure activations.",
            "Give calibration=[batch, ...] with inputs as at inference.",
        )
    count = sum(len(batch) for batch in batches)
    if count < FEWEST_IMAGES:
        raise ModelError(
            f"{count} images are too few to calibrate '{name}'.",
            f"Give at least {FEWEST_IMAGES}; 32 or more is usual.",
        )
    for batch in batches:
        if not batch.is_floating_point() or not torch.isfinite(batch).all():
            raise ModelError(
                "The calibration data holds NaN, infinite or integer values.",
                "Give preprocessed inputs without invalid pixels.",
            )
        check = getattr(model, "check", None)
        if check is not None:
            check(batch)
