"""What is done to a model, by name: one call for every method, noted on the model so that a file can repeat it.

A method is a file ``methods/<stage>/<slug>.py`` with its card and

    decide(model, **settings) -> settings        where it depends on the model or on data what is done (optional): the
                                                 settings that say so, noted with the others: kept parts, bits per layer
    install(model, **settings) -> rows           changes the structure in place and says what it touched;
                                                 works without memory (meta device): a file fills in the tensors
    calibrate(model, batches, **settings) -> rows    where the method measures activations (optional); one row
                                                 per layer, in place of those of ``install``

Either is given batches of images where it takes a second argument, and the classes of each batch's images where it has a
parameter ``classes`` (:class:`Calibration`).

Both raise ModelError where the method cannot serve the model. Stages follow one another (``STAGES``): a model is
adapted (trained on), then parts are pruned, then its tokens are reduced, then it is made robust, then quantized; never
the other way round and no stage twice. Methods of ``TRAINING_STAGES`` act while a model is trained and leave nothing in it.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Sequence
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


class Calibration(NamedTuple):
    """Images that a method measures, with their classes where they are known.

    Attributes:
        images: inputs of the network, ``(images, bands, height, width)``.
        classes: numbers from 0: of each image, or of each of its pixels with -1 where there is none.
    """

    images: Tensor
    classes: Tensor | None = None


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
    calibration: Sequence[Float[Tensor, "_ ..."] | Calibration] | None = None,
    **settings: Any,
) -> Applied:
    """Return a changed copy of a model, and a report.

    Args:
        model: any network; what has been applied to it before is kept.
        name: a method or one of its variants (``vitreous methods`` lists them).
        calibration: batches of inputs as the model gets them at inference; asked for by methods that measure activations.
            Some also need their classes: give a :class:`Calibration` each.
        settings: the method's settings, where they differ from the variant's.

    Raises:
        ModelError: no such method or setting, one that cannot serve this model or comes too late, or calibration
            data that is missing, too little, not finite or of a shape that the model does not take.
    """
    module, complete = _resolve(name, settings)
    _check_stage(model, name)
    decide, calibrate = (getattr(module, part, None) for part in ("decide", "calibrate"))
    asked = _data_of(decide) | _data_of(calibrate)
    data = _checked_data(model, name, calibration, asked) if asked else {}
    changed = copy.deepcopy(model)
    try:
        if decide is not None:
            found = _call(decide, changed, data, **complete)
            complete |= _decided(name, found, complete)
        rows = module.install(changed, **complete)
    except (TypeError, ValueError, ArithmeticError) as error:
        if not settings:
            raise
        raise ModelError(
            f"{name} cannot be applied with {settings}: {error}.", "Change or drop these settings."
        ) from error
    if calibrate is not None:
        training = changed.training
        rows = _call(calibrate, changed.eval(), data, **complete)
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
        _check_stage(model, entry["name"])
        module.install(model, **settings)
        _note(model, entry["name"], settings)
    return model


def applied(model: nn.Module) -> list[dict[str, Any]]:
    """Return what was applied to a model, first to last: ``{"name", "settings"}``, JSON-ready."""
    found: list[dict[str, Any]] = getattr(model, "methods", [])
    return found


def complete_settings(
    name: str, changes: dict[str, Any], wanted: str | None = None
) -> dict[str, Any]:
    """Return all settings of a method, where they do not differ those of the variant.

    Args:
        name: a method or one of its variants.
        changes: what differs.
        wanted: the stage of the methods to suggest where there is none of this name.

    Raises:
        ModelError: no such method or setting (with the nearest known one).
    """
    card(name, "method", wanted)
    return _resolve(name, changes)[1]


def has(model: nn.Module, wanted: str) -> bool:
    """Tell whether a method of a stage was applied."""
    return any(stage(entry["name"]) == wanted for entry in applied(model))


def _resolve(name: str, changes: dict[str, Any]) -> tuple[ModuleType, dict[str, Any]]:
    """Return a method's file and its complete settings."""
    entry = card(name, "method")
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


def _data_of(step: Callable[..., Any] | None) -> set[str]:
    """Return which data a step of a method asks for: ``batches`` as its second argument, ``classes`` by name."""
    if step is None:
        return set()
    parameters = inspect.signature(step).parameters
    plain = [p for p in parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    asked = {"batches"} if len(plain) > 1 else set()
    return asked | ({"classes"} & parameters.keys())


def _call(
    step: Callable[..., Any], model: nn.Module, data: dict[str, list[Tensor]], **settings: Any
) -> Any:
    """Call a step of a method with the data that it asks for."""
    asked = _data_of(step)
    batches = [data["batches"]] if "batches" in asked else []
    classes = {"classes": data["classes"]} if "classes" in asked else {}
    return step(model, *batches, **classes, **settings)


def _decided(name: str, found: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Return what a method has decided, as a file will hold it."""
    unknown = found.keys() - known.keys()
    assert not unknown, f"{name} decides on {sorted(unknown)}, which install does not take"
    assert json.loads(json.dumps(found)) == found, f"{name} decides on what no file can hold"
    return found


def _checked_data(
    model: nn.Module,
    name: str,
    calibration: Sequence[Tensor | Calibration] | None,
    asked: set[str],
) -> dict[str, list[Tensor]]:
    """Return the images, and where they are asked for their classes, of some batches.

    Raises:
        ModelError: there are none, too few, or such as calibrate nothing.
    """
    if calibration is None or len(calibration) == 0:
        raise ModelError(
            f"'{name}' needs calibration data to measure activations.",
            "Give calibration=[batch, ...] with inputs as at inference.",
        )
    both = [one if isinstance(one, tuple) else (one, None) for one in calibration]
    data = {"batches": [images for images, _ in both]}
    _check_images(model, name, data["batches"])
    if "classes" in asked:
        data["classes"] = [classes for _, classes in both if classes is not None]
        fits = len(data["classes"]) == len(both) and all(
            not classes.is_floating_point() and len(classes) == len(images)
            for images, classes in both
            if classes is not None
        )
        if not fits:
            raise ModelError(
                f"'{name}' needs the class of every calibration image.",
                "Give calibration=[Calibration(images, classes), ...] with class numbers from 0.",
            )
    return data


def _check_images(model: nn.Module, name: str, batches: Sequence[Tensor]) -> None:
    """Refuse calibration data that would calibrate nothing, or wrongly."""
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
