"""What the report says of areas, calibration and classes that cannot be tested."""

from __future__ import annotations

import pytest
from page_walker import HOSTILE, walk, words
from test_report import make_run

from vitreous.errors import VitreousError
from vitreous.report.certainty import amount


def finished(run, **changes):
    """Let the first system of a run tell all that a finished one does."""
    own = run.metrics["systems"][0]
    own["refine"] = {"method": "domain_transform", "spatial": 4.0, "reach": 10}
    bins = [{"pixels": 0, "confidence": None, "accuracy": None}] * 14
    reliability = {
        "pixels": 90,
        "ece": 0.042,
        "bins": [*bins, {"pixels": 90, "confidence": 0.95, "accuracy": 0.9}],
    }
    own["calibration"] = {"temperature": 1.37, "ece_before": 0.118, "test": reliability}
    row = {"mapped": 1234.5, "estimate": 1100.0, "low": 1000.0, "high": 1200.0}
    none = {"mapped": 7.25, "estimate": None, "low": None, "high": None}
    own["areas"] = {"unit": "ha", "pixel": 100.0, "assessed": 0.9, "classes": [row] * 3 + [none]}
    own |= changes
    run.metrics["classes"][1] |= {"fields": 1, "testable": False, "why": "one field"}
    run.save()
    return run


def test_areas_calibration_and_untestable_classes_are_told(tmp_path):
    text = words(walk(finished(make_run(tmp_path)).build()))
    for told in (
        "smoothed within the edges of the scene (domain transform)",
        "10 pixels further around",
        "Area estimates",
        "1,000 to 1,200",
        "7.25",
        "10.0 % of the map is of classes with too few test pixels",
        "4.2 %",
        "was 11.8 % before",
        "temperature 1.37",
        "Not testable here: field 2 (one field)",
    ):
        assert told in text, told


@pytest.mark.parametrize(
    ("places", "told"),
    [(None, "they are too narrow"), (1, "there are no intervals"), (34, "between the 34 blocks")],
)
def test_what_the_intervals_of_areas_measure_is_said(tmp_path, places, told):
    run = finished(make_run(tmp_path))
    run.metrics["systems"][0]["areas"]["places"] = places
    run.save()
    assert told in words(walk(run.build()))


def test_without_them_the_page_is_as_ever(tmp_path):
    run = make_run(tmp_path)
    text = words(walk(run.build()))
    for title in ("Area estimates", "Calibration", "Not testable"):
        assert title not in text


def test_what_was_not_calibrated_is_said(tmp_path):
    run = finished(make_run(tmp_path))
    run.metrics["systems"][0]["calibration"]["temperature"] = None
    run.save()
    assert "the probabilities are not calibrated" in words(walk(run.build()))


def test_areas_of_other_classes_are_left_out(tmp_path):
    areas = {"unit": "pixels", "assessed": 1, "classes": [{"mapped": 4.0}]}
    assert "Area estimates" not in words(walk(finished(make_run(tmp_path), areas=areas).build()))


@pytest.mark.parametrize(
    "areas",
    [
        {"unit": "acres", "assessed": 1, "classes": []},
        {"unit": "ha", "assessed": 7, "classes": []},
        {"unit": "ha", "assessed": 1, "classes": [{"mapped": "much"}]},
    ],
)
def test_damaged_areas_are_refused(tmp_path, areas):
    with pytest.raises(VitreousError, match="not a valid run record"):
        finished(make_run(tmp_path), areas=areas).build()


def test_hostile_reasons_stay_text(tmp_path):
    run = finished(make_run(tmp_path))
    run.metrics["classes"][1]["why"] = HOSTILE
    run.metrics["systems"][0]["refine"]["method"] = HOSTILE
    run.save()
    page = run.build()
    assert HOSTILE in words(walk(page))
    assert "<script" not in page


@pytest.mark.parametrize(
    ("value", "written"), [(None, "–"), (0.0123456, "0.0123"), (99.94, "99.9"), (12345.6, "12,346")]
)
def test_areas_have_as_many_digits_as_they_deserve(value, written):
    assert amount(value) == written
