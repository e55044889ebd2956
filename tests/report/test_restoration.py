"""Pages of restoration and pre-training: whole, safe to open, and refused where the records are damaged."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from page_walker import HOSTILE, walk, words

from smooth_scene import smooth_cube, smooth_scene
from vitreous.errors import VitreousError
from vitreous.report import pretraining, restoration

NASTY = [f"{HOSTILE}$\\frac{{$--]]>", '" onmouseover="x" style="', "a\x00b\x1b\ud800\u202ec"]
LOG = "epoch,step,seconds,learning_rate,train_loss,val_psnr,val_loss\n1,25,1,0.1,0.5,20,0.6\n2,50,2,0,0.3,,\n"


def row(name, psnr, bands=6):
    test = {"psnr": psnr, "ssim": 0.875, "sam": 1.25, "ergas": None, "psnr_per_band": [psnr] * bands}  # fmt: skip
    return {
        "name": name, "kind": "restorer", "parameters": 1234567, "train_seconds": 83.0,
        "pixels_per_second": 4567.0, "test": test,
    }  # fmt: skip


class Restored:
    """The folder of a run, and the cubes of its test area."""

    def __init__(self, folder, scale=1, holes=True):
        self.folder, self.scene = folder, smooth_scene()
        self.clean = smooth_cube(6, 24, 32)
        self.degraded = self.clean[:, ::scale, ::scale] + 0.1
        self.restored = self.clean + 0.01
        if holes:
            self.clean[:, 4, 5] = np.nan
        self.metrics = {
            "schema": 1, "task": "restore", "scale": scale, "test_pixels": 767, "bands": 6,
            "degradation": {"name": "band_noise", "settings": {"low": 10.0, "levels": [1.0, 2.5]}},
            "areas": {"train": [0, 40, 0, 62], "test": [0, 40, 72, 96]},
            "wavelengths": self.scene["wavelength"].values.tolist(),
            "systems": [row("hsdt_test", 31.27), row("degraded", 14.15), row("low_rank", 20.5)],
        }  # fmt: skip
        self.config = {
            "recipe": {"scene": "fields.hdr", "seed": 42}, "versions": {"vitreous": "0.0.1"},
            "command": "vitreous restore --scene fields.hdr",
        }  # fmt: skip
        (folder / "log.csv").write_text(LOG)

    def build(self):
        for name in ("metrics", "config"):
            (self.folder / f"{name}.json").write_text(json.dumps(getattr(self, name)))
        return self.again()

    def again(self):
        cubes = (self.clean, self.degraded, self.restored)
        return restoration.build_report(self.folder, self.scene, *cubes).read_text("utf-8")


class Pretrained:
    """The folder of a pre-training run, and pictures of two crops."""

    def __init__(self, folder):
        self.folder, self.scene = folder, smooth_scene()
        self.crops = {
            name: np.random.default_rng(0).normal(size=(2, 6, side, side)).astype(np.float32)
            for name, side in (("input", 9), ("visible", 9), ("reconstruction", 9), ("x2", 18))
        }
        self.metrics = {
            "schema": 1, "task": "pretrain", "parameters": 1234567, "train_seconds": 83.0,
            "train_loss": 0.625, "val_loss": 0.75,
        }  # fmt: skip
        self.config = {"recipe": {"model": "satmae_pp_test", "seed": 42}, "command": "vitreous pretrain"}  # fmt: skip
        (folder / "log.csv").write_text(LOG)

    build = Restored.build

    def again(self):
        return pretraining.build_report(self.folder, self.scene, self.crops).read_text("utf-8")


@pytest.mark.parametrize("scale", [1, 4])
def test_a_restoration_page_holds_the_numbers_of_the_run(tmp_path, scale):
    walker = walk(Restored(tmp_path, scale).build())
    text = words(walker)
    for fact in (
        "31.27 dB", "14.15 dB", "20.50 dB", "0.875", "1.25 °", "–", "1.23 M", "1 min 23 s", "767",
        "band noise (low 10, levels 1, 2.5)", "rows 0–40, columns 72–96", "seed: 42", "0.0.1",
        "vitreous restore --scene fields.hdr", "Super-resolution" if scale > 1 else "Denoising",
    ):  # fmt: skip
        assert fact in text, fact
    assert walker.tags.count("img") == 5
    anchors = {"numbers", "pictures", "spectra", "systems", "bands", "learning", "again"}
    assert anchors <= set(walker.ids)


def test_a_pretraining_page_holds_the_numbers_of_the_run(tmp_path):
    walker = walk(Pretrained(tmp_path).build())
    text = words(walker)
    for fact in ("satmae_pp_test", "0.625", "0.750", "1.23 M", "1 min 23 s", "2x finer",
                 "vitreous pretrain", "Crop 2"):  # fmt: skip
        assert fact in text
    assert walker.tags.count("img") == 8
    assert {"numbers", "pictures", "learning", "again"} <= set(walker.ids)


@pytest.mark.parametrize("kind", [Restored, Pretrained])
def test_hostile_names_stay_text(tmp_path, kind):
    run = kind(tmp_path)
    for system, name in zip(run.metrics.get("systems", []), NASTY, strict=False):
        system["name"] = name
    if kind is Restored:
        settings = {HOSTILE: NASTY[2], "b": [HOSTILE, NASTY[2]]}
        run.metrics["degradation"] = {"name": NASTY[0], "settings": settings}
        run.metrics["areas"] = {HOSTILE: [1, 2, 3, 4]}
    else:
        run.crops = {"input": run.crops["input"], HOSTILE: run.crops["visible"]}
    run.config = {
        "recipe": {HOSTILE: [HOSTILE], "model": NASTY[2] + HOSTILE}, "versions": {HOSTILE: HOSTILE},
        "command": HOSTILE,
    }  # fmt: skip
    run.scene.attrs |= {"source": HOSTILE, "attribution": HOSTILE, "unit": HOSTILE}
    page = run.build()
    walker = walk(page)
    assert "<script" not in page
    assert words(walker).count(HOSTILE) >= 5


@pytest.mark.parametrize("kind", [Restored, Pretrained])
def test_the_same_run_gives_the_same_page_and_absent_parts_are_left_out(tmp_path, kind):
    run = kind(tmp_path)
    assert run.build() == run.build()
    (tmp_path / "log.csv").unlink()
    if kind is Restored:
        run.metrics["systems"] = run.metrics["systems"][:1]
        run.metrics["wavelengths"] = None
        run.clean[:] = np.nan
    else:
        run.crops = {}
    ids = walk(run.build()).ids
    assert not {"learning", "systems", "spectra"} & set(ids)
    assert "again" in ids
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("kind", [Restored, Pretrained])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", "{"),
        ("metrics.json", "[]"),
        ("metrics.json", '{"schema": 2}'),
        ("config.json", '{"recipe": 5}'),
        ("log.csv", "epoch,\x00\udcff"),
    ],
)
def test_damaged_records_are_refused(tmp_path, kind, name, content):
    run = kind(tmp_path)
    run.build()
    (tmp_path / "report.html").write_text("the report before")
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(VitreousError, match=re.escape(name)):
        run.again()
    assert (tmp_path / "report.html").read_text() == "the report before"


@pytest.mark.parametrize(
    "change",
    [{"bands": 5}, {"wavelengths": [500.0]}, {"scale": 2}, {"scale": 10**9}, {"scale": 0},
     {"systems": []}, {"systems": [{"name": "x"}]}, {"degradation": 3}],
)  # fmt: skip
def test_metrics_that_do_not_fit_the_cubes_are_refused(tmp_path, change):
    run = Restored(tmp_path)
    run.metrics |= change
    with pytest.raises(VitreousError, match=r"metrics\.json"):
        run.build()
    assert not (tmp_path / "report.html").exists()


def test_every_test_scene_of_a_collection_is_shown(tmp_path):
    page = Restored(tmp_path)
    page.metrics["scenes"] = [
        {"name": "a.hdr", "role": "train"},
        {"name": "b.hdr", "role": "test"},
        {"name": "c.hdr", "role": "test"},
    ]
    test = page.metrics["systems"][0]["test"]
    test["scenes"] = [{**test, "psnr": 33.25}, {**test, "psnr": 29.5}]
    page.build()
    one = restoration.ShownArea(page.scene, page.clean, page.degraded, page.restored)
    other = one._replace(scene=page.scene.assign_attrs(source="c.hdr"))
    text = restoration.build_report(tmp_path, *one, [other]).read_text("utf-8")
    assert "b.hdr" in text and "33.25 dB" in text and "29.50 dB" in text
    once = page.again().count("Error after restoration")
    assert text.count("Error after restoration") == 2 * once
    with pytest.raises(VitreousError, match="Evaluate the run again"):
        restoration.build_report(tmp_path, *one, [other._replace(clean=page.clean[:-1])])
