import numpy as np
import pytest
import spectral

from mixed_scene import mixed_cube, mixed_scene, rows, smooth_spectra
from vitreous.analysis.target_spectra import Library, as_measured
from vitreous.analysis.targets import ace, cem, matched_filter, sam
from vitreous.errors import ConfigError, SceneError
from vitreous.scenes.resample import resample
from vitreous.scenes.spectra import Spectra, read_spectra, write_spectra

ALL = [sam, matched_filter, ace, cem]


@pytest.fixture(scope="module")
def large():
    return mixed_scene(12, 150, 139)


def write_library(path, scene, values, names, unit="reflectance"):
    write_spectra(Spectra(values, scene["wavelength"].values, names, None, unit), path)
    return path


def test_scores_are_those_of_spectral_python(large):
    image, target = rows(large), rows(large)[70, 20]
    given = {"pixels": [(70, 20), (0, 1)]}
    angles = sam(large, **given).image.values
    members = np.stack([target, image[0, 1]])
    expected = spectral.spectral_angles(image, members).transpose(2, 0, 1)
    np.testing.assert_allclose(angles, expected, atol=1e-5)
    for ours, theirs in ((matched_filter, spectral.matched_filter), (ace, spectral.ace)):
        np.testing.assert_allclose(
            ours(large, **given).image.values[0], theirs(image, target), atol=1e-5
        )


def test_cem_passes_the_target_and_has_the_least_power(large):
    image, target = rows(large), rows(large)[3, 4]
    scores = cem(large, pixels=[(3, 4)]).image.values[0]
    flat = image.reshape(-1, 12)
    inverse = np.linalg.inv(flat.T @ flat / len(flat))
    expected = image @ inverse @ target / (target @ inverse @ target)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert scores[3, 4] == pytest.approx(1, abs=1e-5)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("analysis", ALL)
def test_a_library_in_the_scenes_bands_is_a_pixel(analysis, tmp_path):
    scene = mixed_scene(12)
    spectrum = scene.values[:, 5, 6].astype(np.float64)
    library = write_library(tmp_path / "lib.csv", scene, spectrum[None], ["quartz, pure"])
    found = analysis(scene, library=library)
    expected = analysis(scene, pixels=[(5, 6)])
    np.testing.assert_allclose(found.image.values, expected.image.values, atol=2e-3)
    assert found.facts["targets"] == ["quartz pure"]


@pytest.mark.parametrize("analysis", ALL)
def test_bands_may_be_shuffled(analysis, tmp_path):
    scene = mixed_scene(12)
    library = write_library(tmp_path / "lib.csv", scene, scene.values[:, :2, 3].T, ["a", "b"])
    order = np.random.default_rng(2).permutation(12)
    np.testing.assert_allclose(
        analysis(scene[order], library=library).image.values,
        analysis(scene, library=library).image.values,
        atol=1e-5,
    )


@pytest.mark.parametrize("analysis", ALL)
def test_units_may_change_on_both_sides(analysis, tmp_path):
    scene = mixed_scene(12)
    library = write_library(tmp_path / "lib.csv", scene, scene.values[:, 4, 3][None], ["a"])
    stored = mixed_scene(cube=np.round(scene.values * 10_000).astype(np.uint16), scale=1e-4)
    unscaled = mixed_scene(cube=stored.values)
    expected = analysis(scene, library=library).image.values
    assert np.abs(analysis(stored, library=library).image.values - expected).max() < 2e-2
    scaled = analysis(unscaled, library=Library(library, scale=10_000)).image.values
    assert np.abs(scaled - expected).max() < 2e-2


def test_sam_does_not_see_brightness():
    scene = mixed_scene(12)
    shade = np.linspace(0.1, 1, 50, dtype=np.float32)
    darker = mixed_scene(cube=scene.values * shade)
    target = {"pixels": [(2, 49)]}
    np.testing.assert_allclose(
        sam(darker, **target).image.values, sam(scene, **target).image.values, atol=1e-4
    )


def test_resampling_of_a_library_equals_that_of_a_scene(tmp_path):
    fine = np.arange(400, 2501.0)
    spectrum = (0.5 + 0.4 * np.sin(fine / 150)).astype(np.float32)
    scene = mixed_scene(12, fwhm=np.full(12, 90.0))
    source = mixed_scene(
        cube=np.tile(spectrum[:, None, None], (1, 2, 2)), wavelengths=fine, fwhm=np.ones(fine.size)
    )
    rows_ = [f"{centre},90" for centre in scene["wavelength"].values]
    (tmp_path / "bands.csv").write_text("\n".join(["wavelength,fwhm", *rows_]))
    library = Spectra(
        spectrum[None].astype(float), fine, ["sine"], np.ones(fine.size), "reflectance"
    )
    expected = resample(source, tmp_path / "bands.csv").values[:, 0, 0]
    np.testing.assert_allclose(as_measured(library, scene, "x").values[0], expected, rtol=1e-5)


def test_micrometres_percent_and_gaps_are_understood(tmp_path):
    scene = mixed_scene(12)
    spectrum = scene.values[:, 5, 6].astype(np.float64)
    lines = [
        f"{nm / 1000:.6f} {100 * value:.6f}"
        for nm, value in zip(scene["wavelength"].values, spectrum, strict=True)
    ]
    text = [
        "Name: quartz",
        "X Units: Wavelength (micrometers)",
        "Y Units: Reflectance (percent)",
        *lines,
    ]
    (tmp_path / "q.spectrum.txt").write_text("\n".join(text))
    found = sam(scene, library=tmp_path / "q.spectrum.txt")
    assert found.image.values[0, 5, 6] < 1e-3
    for k in (4, 5, 6):
        lines[k] = f"{lines[k].split()[0]} -1.23e34"
    (tmp_path / "gap.txt").write_text("\n".join([*text[:3], *lines]))
    with pytest.warns(UserWarning, match="3 of the 12 bands"):
        found = sam(scene, library=tmp_path / "gap.txt")
    assert found.facts["bands_compared"] == 9
    assert found.image.values[0, 5, 6] < 1e-3


@pytest.mark.parametrize("analysis", ALL)
def test_part_of_the_range_is_compared_and_said(analysis, tmp_path):
    scene = mixed_scene(12)
    part = scene.isel(band=slice(0, 6))
    library = write_library(tmp_path / "vis.csv", part, part.values[:, 5, 6][None], ["a"])
    with pytest.warns(UserWarning, match=r"does not cover \d of the 12 bands"):
        found = analysis(scene, library=library)
    np.testing.assert_allclose(
        found.image.values, analysis(part, pixels=[(5, 6)]).image.values, atol=2e-3
    )


@pytest.mark.parametrize("analysis", ALL)
def test_spectra_of_another_range_are_refused(analysis, tmp_path):
    scene = mixed_scene(12)
    far = scene.assign_coords(wavelength=("band", np.linspace(7500, 13_000, 12)))
    library = write_library(tmp_path / "tir.csv", far, scene.values[:, 5, 6][None], ["a"])
    with pytest.raises(SceneError, match=r"7500 to 13000 nm.*0 of the 12 bands.*450 to 2300 nm"):
        analysis(scene, library=library)


@pytest.mark.parametrize("analysis", [matched_filter, ace, cem])
@pytest.mark.parametrize("factor", [100, 10_000])
def test_spectra_in_another_scale_are_refused(analysis, factor, tmp_path):
    scene = mixed_scene(12)
    spectrum = scene.values[:, 5, 6][None].astype(float) * factor
    library = write_library(tmp_path / "lib.csv", scene, spectrum, ["a"], "dn")
    with pytest.raises(SceneError, match=f"library-scale {1 / factor:g}"):
        analysis(scene, library=library)


@pytest.mark.parametrize("analysis", ALL)
def test_reflectance_is_not_looked_for_in_radiance(analysis, tmp_path):
    scene = mixed_scene(12)
    head = "Y Units: reflectance\n"
    library = write_library(tmp_path / "lib.csv", scene, scene.values[:, 5, 6][None], ["a"])
    library.write_text(head + library.read_text())
    assert read_spectra(library).unit == "reflectance"
    for unit in ("radiance", "dn"):
        with pytest.raises(SceneError, match=f"holds reflectance, but mixed holds {unit}"):
            analysis(mixed_scene(cube=scene.values, unit=unit), library=library)


def test_spectra_are_chosen_by_name_and_pattern(tmp_path):
    scene = mixed_scene(12)
    names = [f"Kaolinite {k}" for k in range(40)] + ["Alunite"]
    library = write_library(
        tmp_path / "lib.csv", scene, scene.values.reshape(12, -1)[:, :41].T, names
    )
    assert sam(scene, library=Library(library, ("alunite",))).facts["targets"] == ["Alunite"]
    assert len(sam(scene, library=Library(library, ("*ite 1?",))).facts["targets"]) == 10
    with pytest.raises(ConfigError, match=r"no spectrum 'Alunit'\. Did you mean 'Alunite'"):
        sam(scene, library=Library(library, ("Alunit",)))
    with pytest.raises(ConfigError, match="41 spectra are chosen"):
        sam(scene, library=library)


@pytest.mark.parametrize("analysis", ALL)
def test_a_spectrum_is_needed_from_one_place(analysis, tmp_path):
    scene = mixed_scene(12)
    library = write_library(tmp_path / "lib.csv", scene, scene.values[:, 5, 6][None], ["a"])
    with pytest.raises(ConfigError, match="either by a library or by pixels"):
        analysis(scene)
    with pytest.raises(ConfigError, match="either by a library or by pixels"):
        analysis(scene, library=library, pixels=[(0, 0)])


@pytest.mark.parametrize("analysis", ALL)
def test_pixels_must_be_there_and_valid(analysis):
    cube = mixed_cube(smooth_spectra(4, 12))
    cube[:, 7, 7] = np.nan
    scene = mixed_scene(cube=cube)
    with pytest.raises(SceneError, match="row 40, column 0 lies outside"):
        analysis(scene, pixels=[(40, 0)])
    with pytest.raises(SceneError, match=r"row 7, column 7 .* no valid measurement"):
        analysis(scene, pixels=[(7, 7)])


@pytest.mark.parametrize("analysis", ALL)
def test_invalid_pixels_and_bad_bands_take_no_part(analysis):
    whole = mixed_scene(9)
    cube = np.concatenate([whole.values, np.full((1, 40, 50), 7e4, np.float32)])
    cube[:, 30:] = -9999
    scene = mixed_scene(
        cube=cube,
        nodata=-9999,
        good_band=[True] * 9 + [False],
        wavelengths=[*whole["wavelength"].values, 2400],
    )
    found = analysis(scene, pixels=[(2, 3)]).image.values
    expected = analysis(whole[:, :30], pixels=[(2, 3)]).image.values
    np.testing.assert_allclose(found[:, :30], expected, atol=1e-5)
    assert np.isnan(found[:, 30:]).all()


def test_bands_computed_from_others_are_said_and_do_no_harm():
    scene = mixed_scene(9)
    twice = mixed_scene(cube=np.concatenate([scene.values, scene.values[:1]]))
    with pytest.warns(UserWarning, match="1 of 10 directions"):
        found = matched_filter(twice, pixels=[(2, 3)]).image.values
    np.testing.assert_allclose(
        found, matched_filter(scene, pixels=[(2, 3)]).image.values, atol=1e-3
    )


@pytest.mark.parametrize("analysis", [matched_filter, ace])
def test_the_mean_spectrum_is_no_target(analysis, tmp_path):
    half = mixed_cube(smooth_spectra(4, 8), 20, 50).astype(np.float64)
    # Mirrored around 0.5, so that the mean is that exactly.
    cube = np.round(np.concatenate([half, 1 - half], axis=1) * 2**12) / 2**12
    scene = mixed_scene(cube=cube)
    library = write_library(tmp_path / "lib.csv", scene, np.full((1, 8), 0.5), ["grey"])
    with pytest.raises(SceneError, match="'grey' is the mean spectrum"):
        analysis(scene, library=library)


def test_scenes_without_wavelengths_take_pixels_only(tmp_path):
    scene = mixed_scene(12)
    library = write_library(tmp_path / "lib.csv", scene, scene.values[:, 5, 6][None], ["a"])
    bare = mixed_scene(cube=scene.values, wavelengths=None)
    assert sam(bare, pixels=[(5, 6)]).image.values[0, 5, 6] < 1e-3
    with pytest.raises(SceneError, match="no wavelengths"):
        sam(bare, library=library)
