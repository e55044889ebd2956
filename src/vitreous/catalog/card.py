"""The card at the top of every system's file: what it is, where it comes from, what was published about it.

A card is written as a literal (`CARD = Card(...)` with plain strings, numbers, lists and dicts), so that the
registry can read it from the source without importing the system or torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Card:
    """Facts about one system.

    Attributes:
        slug: the system's name, equal to its file's name.
        title: the paper's title, or a plain description where there is no paper.
        kind: one of :mod:`vitreous.catalog.kinds`: ``model`` (an architecture that classifies images), ``restorer`` (a
            network from a degraded cube to a clean one), ``filter`` (a classical restorer, which learns nothing),
            ``method`` (something done to a model) or ``estimator`` (a classical classifier on pixel features).
        summary: one sentence: what it is.
        when: one sentence: when to pick it.
        paper: where it was published.
        year: of publication.
        source_licence: licence of the authors' code (we re-implement; none of it is copied).
        tasks: what it can be trained for.
        input: how a network reads the spectral axis: ``channels`` (any features in any order), ``bands`` (those of the
            scene, each by itself or in their order), or ``wavelengths`` (bands whose centres it is told). Recipes reduce
            channels to principal components by default, and leave bands as they are unless the card's own ``recipe``
            names ``components``.
        most_bands: bands that it can read one by one at reasonable cost, None for any number; more are reduced.
        models: of a method: the models that it serves, by shell patterns of their variants.
        stage: of a method: what its folder is called, which a method of another package says here where it does not
            lie in such a folder.
        variants: variant name (starts with the slug) to constructor arguments.
        published: rows of published or measured facts, e.g. parameter counts per variant.
        recipe: the paper's training settings.
        claim: the paper's claim in one sentence.
        miniature: the claim at our scale, and the baseline it is compared with.
        notes: decisions, assumptions, and differences from the reference.
    """

    slug: str
    title: str
    kind: str
    summary: str
    when: str
    paper: str = ""
    year: int = 0
    source_licence: str = ""
    tasks: list[str] = field(default_factory=list)
    input: str = "channels"
    most_bands: int | None = None
    models: list[str] = field(default_factory=list)
    stage: str = ""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    published: list[dict[str, Any]] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)
    claim: str = ""
    miniature: str = ""
    notes: list[str] = field(default_factory=list)
