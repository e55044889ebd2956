"""What a map's areas and a classifier's probabilities are worth: two sections of the report."""

from __future__ import annotations

from collections.abc import Sequence

from vitreous.report import figures
from vitreous.report.markup import Markup, join, tag
from vitreous.report.page import MISSING, as_svg, as_table, percent
from vitreous.report.record import AreaEntry, Areas, Calibration, ClassEntry, Number, System

RELIABILITY_WIDTH = 360  # on the page, in CSS pixels
MOST_AREAS = 60  # classes in the plot: more rows cannot be read
UNITS = {"ha": "hectares", "pixels": "pixels"}


def areas_section(classes: Sequence[ClassEntry], areas: Areas | None) -> Markup | None:
    """Return the estimated areas of the classes with their intervals; None where nobody estimated them.

    Args:
        classes: the classes.
        areas: of the trained system's map.
    """
    if areas is None or len(areas.classes) != len(classes):
        return None
    names = [entry.name for entry in classes]
    figure = None
    if len(classes) <= MOST_AREAS and any(row.estimate is not None for row in areas.classes):
        drawn = figures.areas_figure(areas.classes, names, [c.color for c in classes], areas.unit)
        figure = tag("div", as_svg(drawn, "areas", "Area of each class"), class_="card wide")
    unit = UNITS[areas.unit]
    head = ("Class", f"On the map ({areas.unit})", "Estimate", "95 % interval")
    rows = [
        [name, amount(row.mapped), amount(row.estimate), _interval(row)]
        for name, row in zip(names, areas.classes, strict=True)
    ]
    words = (
        f"The map counts its own errors as ground; the estimate, in {unit}, corrects them by the confusion matrix, with the "
        "classes of the map as strata (Olofsson et al. 2014). It holds as far as the test pixels of a mapped class are like "
        f"all its pixels. {_interval_words(areas.places)}"
    )
    if areas.assessed < 1:
        words += (
            f" {percent(1 - areas.assessed)} of the map is of classes with too few test pixels to tell, and is left out of "
            "the estimates."
        )
    return join(
        tag("p", words, class_="note"),
        figure,
        tag("div", as_table("Area of each class", head, rows), class_="card scroll"),
    )


def _interval_words(places: int | None) -> str:
    """Say what the intervals measure; of runs without places, that they are too narrow."""
    if places is None:
        return "The intervals treat test pixels as independent: neighbouring pixels err together, so they are too narrow."
    if places < 2:
        return "All test pixels lie in one block, which tells nothing of others: there are no intervals."
    return (
        f"Neighbouring pixels err together, so the intervals measure the variation between the {places:,} blocks, or scenes of "
        "a collection, that the test pixels lie in; with few of them they are too narrow."
    )


def amount(value: Number) -> str:
    """Write an area with as many digits as it deserves."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _interval(row: AreaEntry) -> str:
    if row.low is None or row.high is None:
        return MISSING
    return f"{amount(row.low)} to {amount(row.high)}"


def calibration_section(system: System) -> Markup | None:
    """Return how sure the trained system is and how often it is right; None where nobody looked."""
    found = system.calibration
    if found is None or found.test is None or not found.test.pixels:
        return None
    figure = figures.reliability_figure(found.test)
    words = (
        f"Each point is a range of the largest probability: how often those test pixels are right. On the diagonal a "
        f"probability of 80 % is right in 80 % of the cases. {_calibration_words(found)}"
    )
    drawn = as_svg(figure, "reliability", "Reliability of the probabilities")
    return tag(
        "figure",
        tag("div", drawn, style=f"max-width:{RELIABILITY_WIDTH}px"),
        tag("figcaption", words),
        class_="card",
    )


def _calibration_words(found: Calibration) -> str:
    assert found.test is not None
    error = f"The expected calibration error (ECE) is {percent(found.test.ece)}"
    if found.temperature is None:
        return (
            f"{error} of {found.test.pixels:,} test pixels; the probabilities are not calibrated, because there were no "
            "validation pixels to do it on."
        )
    return (
        f"{error} of {found.test.pixels:,} test pixels, and was {percent(found.ece_before)} before the probabilities "
        f"were calibrated on the validation pixels (temperature {found.temperature:.2f})."
    )
