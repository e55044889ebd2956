import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from vitreous.errors import SceneError
from vitreous.scenes.cube import read_window
from vitreous.scenes.samples import SAMPLES, Sample, load_sample

# As published with the scene, classes 1 to 16.
COUNTS = [46, 1428, 830, 237, 483, 730, 28, 478, 20, 972, 2455, 593, 205, 1265, 386, 93]
# From the class numbers of the published training image to those of today's ground truth.
TO_TODAY = [0, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 14, 15, 16, 1, 7, 9]


@pytest.fixture(scope="module")
def sample() -> Sample:
    return load_sample("indian_pines")


def test_scene_and_ground_truth_are_the_published_ones(sample: Sample) -> None:
    assert sample.scene.shape == (200, 145, 145)
    assert (int(sample.scene.min()), int(sample.scene.max())) == (955, 9604)
    assert np.bincount(sample.labels.values.ravel())[1:].tolist() == COUNTS
    assert (
        len(sample.labels.attrs["class_names"])
        == len(set(sample.labels.attrs["class_colors"]))
        == 16
    )
    assert read_window(sample.scene, slice(0, 145), slice(0, 145)).shape == (200, 145, 145)


def test_training_pixels(sample: Sample) -> None:
    train, truth = sample.train_labels.values, sample.labels.values
    assert np.bincount(train.ravel())[1:].tolist() == [
        15,
        50,
        50,
        50,
        50,
        50,
        15,
        50,
        15,
        *[50] * 7,
    ]
    both = (train > 0) & (truth > 0)
    assert both.sum() == 669  # the other 26 are unlabelled in today's ground truth
    np.testing.assert_array_equal(train[both], truth[both])
    assert ((truth > 0) & (train == 0)).sum() == 9580


def test_training_pixels_equal_the_published_image(sample: Sample, shared_data: Path) -> None:
    import rasterio

    with rasterio.open(shared_data / "indian_pines" / "IndianTR123_temp123.tif") as image:
        np.testing.assert_array_equal(np.array(TO_TODAY)[image.read(1)], sample.train_labels.values)


def test_wavelengths_equal_the_calibration_of_the_sensor(sample: Sample, shared_data: Path) -> None:
    calibration = np.loadtxt(shared_data / "indian_pines" / "92AV3C.spc", skiprows=2)
    with (shared_data / "indian_pines" / "wavelengths_200.csv").open() as file:
        bands = [int(row["aviris_band_1based"]) - 1 for row in csv.DictReader(file)]
    np.testing.assert_allclose(sample.scene.wavelength, calibration[bands, 0], atol=0.006)
    np.testing.assert_allclose(sample.scene.fwhm, calibration[bands, 1], atol=1e-6)


def test_the_spectra_agree_with_the_wavelengths(sample: Sample) -> None:
    """Woods (class 14): chlorophyll absorbs red at 670 nm, leaves scatter the near infrared at 860 nm."""
    woods = sample.scene.values[:, sample.labels.values == 14].mean(axis=1)
    bands = sample.scene.wavelength.values
    red, infrared = (woods[np.argmin(np.abs(bands - nm))] for nm in (670, 860))
    assert infrared > 1.5 * red


def test_an_unknown_sample_is_refused() -> None:
    assert "indian_pines" in SAMPLES
    with pytest.raises(SceneError, match="Did you mean 'indian_pines'"):
        load_sample("indian_pine")


def test_without_tensorly_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorly.datasets", None)
    with pytest.raises(SceneError, match="pip install tensorly"):
        load_sample("indian_pines")
