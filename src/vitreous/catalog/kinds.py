"""The kinds of systems: what each is, what it takes to build one, and what it promises.

This is the only place that lists them. It is a table of plain values: paths are strings ``module:name``
(:func:`vitreous.catalog.lookup.load`), so that reading it imports nothing.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from vitreous.catalog import plugins


@dataclass(frozen=True)
class Kind:
    """One kind of systems.

    Attributes:
        name: as it stands on cards.
        title: as readers call it.
        base: path of the class that every system of this kind is an instance of; empty where nothing is built.
        buildable: whether ``create_model`` builds it.
        sizes: what it needs to be built, beside the number of bands.
        gradient: whether it is trained by gradient descent.
        verify: path of the function that refuses settings before anything is read (see
            :func:`vitreous.catalog.registry.check_system`); empty where there are none to refuse.
        checks: path of the conformance checks, a tuple of functions that take the name of a variant; empty where
            there are none.
        advice: what to do with such a system where no task trains it.
    """

    name: str
    title: str
    base: str = ""
    buildable: bool = False
    sizes: tuple[str, ...] = ()
    gradient: bool = False
    verify: str = ""
    checks: str = ""
    advice: str = ""


_NETWORK = "vitreous.catalog.registry:check_network"

KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "model",
            title="architecture",
            base="vitreous.layers.backbone:Backbone",
            buildable=True,
            sizes=("num_classes", "image_size"),
            gradient=True,
            verify=_NETWORK,
            checks="vitreous.testing:CHECKS",
        ),
        Kind(
            "restorer",
            title="restoration network",
            base="vitreous.layers.restorer:Restorer",
            buildable=True,
            gradient=True,
            verify=_NETWORK,
            checks="vitreous.testing:RESTORER_CHECKS",
        ),
        Kind(
            "filter",
            title="classical filter",
            base="vitreous.layers.restorer:Restorer",
            buildable=True,
            verify=_NETWORK,
            checks="vitreous.testing:FILTER_CHECKS",
        ),
        Kind(
            "estimator",
            title="classical classifier",
            base="vitreous.models._pixel_estimator:PixelEstimator",
            verify="vitreous.catalog.registry:check_estimator",
        ),
        Kind(
            "choice",
            title="automatic choice",
            verify="vitreous.tasks.auto:check",
        ),
        Kind(
            "method",
            title="method",
            advice="Name the model with --model and the method with --adapt or --reduce, apply it to a trained run "
            "with 'vitreous compress'",
        ),
    )
}


@functools.cache
def kinds() -> dict[str, Kind]:
    """Return every kind by its name: ours, then those of other packages."""
    found = dict(KINDS)
    for source, kind in plugins.rows(plugins.KINDS, "KIND", Kind):
        if kind.name in found:
            plugins.leave_out(
                source.package, source.module, f"there is a kind '{kind.name}' already"
            )
        else:
            found[kind.name] = kind
    return found
