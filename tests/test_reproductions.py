"""The scripts that hold a claim up to measurement: they run, and their words follow from their numbers."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from vitreous.catalog.reproduce import SCRIPTS, _load
from vitreous.catalog.results import percent, write_result
from vitreous.catalog.study import statement
from vitreous.files import read_json
from vitreous.scenes.cube import make_labels, make_scene
from vitreous.tasks.labelled import LabelledScene

pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="installed without its checkout")
KEYS = {"title", "command", "machine", "date", "versions", "rows", "conclusion"}


@pytest.fixture(scope="module")
def lola():
    return _load(SCRIPTS / "lola_specvit.py")


@pytest.mark.parametrize(
    "path",
    [
        path
        for folder in ("reproductions", "benchmarks")
        for path in sorted((SCRIPTS.parent / folder).glob("[a-z]*.py"))
    ],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_every_script_finds_what_it_imports(path: Path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)
    assert callable(_load(path).main)


@pytest.fixture(scope="module")
def striped():
    """Twelve bands of four classes in stripes, so that every corner of the scene has each."""
    rng = np.random.default_rng(0)
    truth = np.tile(np.repeat(np.arange(1, 5), 5), 2)[None].repeat(36, 0)
    spectra = rng.normal(size=(12, 5))
    values = spectra[:, truth] + 0.1 * rng.normal(size=(12, *truth.shape))
    scene = make_scene(values.astype(np.float32), wavelengths=np.linspace(450, 900, 12))
    return LabelledScene(scene, make_labels(truth))


def records(lola, ours, plain, ways):
    """Return what a measurement with these overall accuracies would have recorded, on five seeds."""
    row = {
        "aa": 0.5,
        "kappa": 0.5,
        "parameters": 100,
        "train_pixels": 9,
        "learning_rate": 1e-3,
        "epochs": 9,
    }
    parts = [lola.labels_part(share) for share in lola.LABELS]
    found = [
        {**row, "part": part, "system": system, "oa": oa, "trainable": 100}
        for part, pair in zip(parts, zip(ours, plain, strict=True), strict=True)
        for system, oa in zip((lola.OURS, lola.PLAIN), pair, strict=True)
    ]
    for form in lola.FORMS:
        for way, (oa, trainable) in zip(lola.WAYS, ways, strict=True):
            name = lola.adaptation_name(form, way)
            found.append(
                {**row, "part": lola.ADAPTED, "system": name, "oa": oa, "trainable": trainable}
            )
    luck = (0.0, 0.01, -0.01, 0.02, 0.0)  # which all systems of a seed share
    return [{**r, "seed": seed, "oa": r["oa"] + luck[seed]} for seed in range(5) for r in found]


WAYS = ((0.90, 100), (0.89, 15), (0.80, 2))


def test_claims_that_hold(lola):
    found = lola.claims(records(lola, (0.7, 0.8, 0.95), (0.6, 0.75, 0.93), WAYS))
    verdict = [claim.verdict for claim in found]
    assert verdict.count("holds") == 8 and verdict.count(None) == 2
    at_2 = next(claim for claim in found if claim.required == lola.GAIN_AT_2)
    assert at_2.effect == pytest.approx(5.0) and at_2.low == pytest.approx(5.0)  # luck is shared


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({"ours": (0.7, 0.755, 0.95)}, 1),  # 0.5 points at 2 %
        ({"ours": (0.6, 0.8, 0.95)}, 1),  # gap 0 at 1 %, 2 at 10 %
        ({"ways": ((0.90, 100), (0.88, 15), (0.80, 2))}, 2),  # 2 points behind, in both forms
        ({"ways": ((0.90, 100), (0.89, 15), (0.895, 2))}, 2),  # below the head alone
        ({"ways": ((0.90, 100), (0.89, 45), (0.80, 2))}, 2),  # trains too much
    ],
)
def test_claims_that_do_not_hold(lola, change, fails):
    given = {"ours": (0.7, 0.8, 0.95), "plain": (0.6, 0.75, 0.93), "ways": WAYS}
    found = [claim.verdict for claim in lola.claims(records(lola, **(given | change)))]
    assert (found.count("does not hold"), found.count("holds")) == (fails, 8 - fails)


def test_summary_averages_over_seeds(lola):
    first = lola.summary(records(lola, (0.7, 0.8, 0.95), (0.6, 0.75, 0.93), WAYS))[0]
    assert first["seeds"] == 5
    assert first["OA %"] == "70.40 ± 1.14"


def test_plain_vit_is_never_the_smaller_one(lola):
    from vitreous.catalog.registry import create_model
    from vitreous.recipe import make_recipe
    from vitreous.tasks.runs import parameter_counts

    recipe = make_recipe({"model": lola.OURS})
    shape = {"bands": recipe.components, "num_classes": 16, "image_size": recipe.patch_size}
    depth = lola.depth_of_plain_vit(16, recipe)
    ours = parameter_counts(create_model(lola.OURS, **shape))[0]
    plain, less = (
        parameter_counts(create_model(lola.PLAIN, **shape, depth=d))[0] for d in (depth, depth - 1)
    )
    assert less < ours <= plain


def test_measurements_train_what_they_say(lola, striped, tmp_path, monkeypatch):
    # The smallest variant, on a scene with so few classes that half of them are two.
    monkeypatch.setattr(lola, "OURS", "lola_specvit_test")
    bench = lola.Bench(striped, tmp_path, steps=2, quick=True)
    setting = lola.Setting(1e-3, 1)
    ours, plain = (lola.train(bench, name, 0.1, 0, setting) for name in (lola.OURS, lola.PLAIN))
    assert ours["train_pixels"] == plain["train_pixels"] == 144
    assert ours["test_pixels"] == plain["test_pixels"]
    assert ours["batch_size"] == plain["batch_size"] == 72
    assert plain["parameters"] >= ours["parameters"] == ours["trainable"]
    chosen = lola.train(bench, lola.OURS, 0.1, lola.SEARCH_SEED, setting, validated=True)
    assert chosen["train_pixels"] == chosen["test_pixels"] == 144  # the validation pixels alone
    assert chosen["validation"] == chosen["oa"]
    base = functools.cache(lambda form: lola.base_run(bench, form, setting))
    full, adapters, head = (
        lola.adapt(bench, base, "plain", way, 0, setting)["trainable"] for way in lola.WAYS
    )
    assert full > adapters > head > 0


def test_only_numbers_classes_anew(striped):
    part = striped.only([4, 2])
    values, truth = part.labels.values, striped.labels.values
    assert (values[truth == 4] == 1).all() and (values[truth == 2] == 2).all()
    assert (values[(truth == 1) | (truth == 3)] == 0).all()
    assert part.class_names == [striped.class_names[3], striped.class_names[1]]


def test_cropped_keeps_scene_and_labels_together(striped):
    part = striped.cropped(slice(3, 10), slice(5, 30))
    assert part.scene.shape == (12, 7, 25)
    assert np.array_equal(part.labels.values, striped.labels.values[3:10, 5:30])


def test_percent():
    assert percent([0.5]) == "50.00"
    assert percent([0.4, 0.6]) == "50.00 ± 14.14"


def test_result_has_the_keys_that_the_docs_read(tmp_path):
    path = tmp_path / "x.json"
    write_result(path, title="t", command="c", rows=[{"a": 1}], conclusion="w", runs=[2])
    result = json.loads(path.read_text())
    assert set(result) >= KEYS and result["runs"] == [2] and "cores" in result["machine"]


@pytest.mark.parametrize(
    "path",
    [
        path
        for folder in ("reproductions", "benchmarks")
        for path in sorted((SCRIPTS.parent / folder / "results").glob("*.json"))
    ],
    ids=lambda path: f"{path.parent.parent.name}-{path.stem}",
)
def test_recorded_results_are_complete(path: Path):
    result = json.loads(path.read_text(encoding="utf-8"))
    assert set(result) >= KEYS
    assert result["rows"] and all(isinstance(row, dict) for row in result["rows"])
    assert result["conclusion"]


# -- claims of architectures, restorers and methods ---------------------------------------------------------------------------------

# What each script's claims are made of: the scores that every system reaches, and what else is recorded. With these
# figures all claims hold; each change makes the named one fail, and no other.
MET: dict[str, tuple[str, dict[str, dict[str, object]], dict[str, object]]] = {
    "tnt": (
        "accuracy",
        {
            "TNT": {"accuracy": 0.92},
            "TNT without word attention": {"accuracy": 0.91},
            "ViT": {"accuracy": 0.90},
        },
        {"inner_share": 0.12},
    ),
    "spectformer": (
        "oa",
        {
            "alpha 0 (attention)": {"oa": 0.50, "macs": 9},
            "alpha 2": {"oa": 0.50, "macs": 8},
            "alpha 6 (spectral)": {"oa": 0.50, "macs": 7},
            "attention first": {"oa": 0.49, "macs": 8},
        },
        {},
    ),
    "smt": (
        "accuracy",
        {
            "SMT": {"accuracy": 0.90, "macs": 5},
            "kernels of 3 x 3": {"accuracy": 0.90, "macs": 5},
            "no aggregation": {"accuracy": 0.95, "macs": 4},
            "attention only": {"accuracy": 0.89, "macs": 8},
        },
        {},
    ),
    "hornet": (
        "accuracy",
        {
            "HorNet, orders 2 to 4": {"accuracy": 0.90},
            "HorNet, order 1": {"accuracy": 0.904},
            "ConvNeXt": {"accuracy": 0.89},
        },
        {"growth": 5.0},
    ),
    "fmvit": (
        "accuracy",
        {
            "both": {
                "accuracy": 0.90,
                "parameters": 9,
                "fused_parameters": 5,
                "error": 1e-5,
                "ratios": [0.5, 0.6, 9.0],
            },
            "attention only": {"accuracy": 0.904},
            "convolutions only": {"accuracy": 0.88},
            "single branches": {"accuracy": 0.95},
        },
        {},
    ),
    "dhvt": (
        "accuracy",
        {
            f"{arm}, {data}": {"accuracy": accuracy}
            for data in ("digits", "Indian Pines")
            for arm, accuracy in (
                ("ViT with positions", 0.850),
                ("SOPE", 0.848),
                ("SOPE, DAFF", 0.880),
                ("DHVT", 0.890),
                ("ResNet", 0.900),
            )
        },
        {},
    ),
    "swin": (
        "accuracy",
        {
            "shifted windows": {"accuracy": 0.95, "attention_macs": [1, 4]},
            "fixed windows": {"accuracy": 0.50, "attention_macs": [1, 4]},
            "global attention": {"accuracy": 0.97, "attention_macs": [1, 16]},
        },
        {},
    ),
    "t2t_vit": (
        "accuracy",
        {
            "T2T, performer": {"accuracy": 0.96, "parameters": 107},
            "T2T, transformer": {"accuracy": 0.97, "parameters": 107},
            "patches": {"accuracy": 0.94, "parameters": 100},
            "convolutions": {"accuracy": 0.98, "parameters": 105},
        },
        {},
    ),
    "ggem": (
        "accuracy",
        {
            "class": {"accuracy": 0.80, "recall": 0.80, "exponents": []},
            "mean": {"accuracy": 0.85, "recall": 0.80, "exponents": []},
            "max": {"accuracy": 0.84, "recall": 0.80, "exponents": []},
            "gem": {"accuracy": 0.86, "recall": 0.80, "exponents": []},
            "ggem": {"accuracy": 0.85, "recall": 0.81, "exponents": [2.0, 3.0]},
        },
        {},
    ),
    "convnext": (
        "accuracy",
        {
            "ConvNeXt, 7 x 7": {"accuracy": 0.95},
            "ConvNeXt, 3 x 3": {"accuracy": 0.954},
            "windows": {"accuracy": 0.94},
            "ResNet": {"accuracy": 0.97},
            "time": {"ratios": [0.7, 0.6, 9.0]},
        },
        {},
    ),
    "crossvit": (
        "oa",
        {
            "cross-attention": {"oa": 0.92},
            "sum": {"oa": 0.92},
            "single": {"oa": 0.91},
            "sum on blocks": {"oa": 0.3, "commonest": 0.25},
        },
        {"growth": 2.0},
    ),
    "efficientformer": (
        "accuracy",
        {
            "slimmed": {"accuracy": 0.95},
            "narrowed": {"accuracy": 0.94},
            "supernet": {"shares": {"slimmed": 0.66}, "predicted_shares": {"slimmed": 0.7}},
            "time of one image": {"ratios": [0.7, 0.6, 9.0]},
        },
        {},
    ),
    "efficientvit": (
        "accuracy",
        {
            "sandwich, cascaded groups": {"accuracy": 0.95, "similarity": 0.5},
            "multi-head, one feed-forward": {"accuracy": 0.95, "similarity": 0.6},
            "time of the usual blocks": {"ratios": [1.4, 1.3, 0.1]},
            "time of the hybrid": {"ratios": [2.5, 2.6, 0.1]},
        },
        {},
    ),
    "essaformer": (
        "psnr",
        {
            "bicubic": {"psnr": 30.0, "sam": 2.0},
            "ESSA": {"psnr": 30.6, "sam": 1.9},
            "values alone": {"psnr": 30.6, "sam": 1.9},
            "softmax attention": {"psnr": 30.5, "sam": 1.9},
            "time": {"ratios": [0.1, 0.2, 9.0]},
            "time at twice the tokens": {"ratios": [2.0, 2.1, 9.0]},
            "softmax at twice the tokens": {"ratios": [3.9, 4.0, 9.0]},
        },
        {},
    ),
    "channelvit": (
        "oa",
        {
            "ViT": {"oa": [0.85, 0.80, 0.60, 0.40, 0.2]},
            "ViT, sampled": {"oa": [0.80, 0.75, 0.68, 0.55, 0.4]},
            "ChannelViT": {"oa": [0.85, 0.80, 0.65, 0.40, 0.2]},
            "ChannelViT, sampled": {"oa": [0.85, 0.83, 0.78, 0.60, 0.5]},
        },
        {},
    ),
    "satmae_pp": (
        "probe",
        {
            "not pre-trained": {"probe": 0.70, "fine_tuned": 0.80},
            "one scale (SatMAE)": {"probe": 0.77, "fine_tuned": 0.81, "finer_l1": 0.4},
            "two scales (SatMAE++)": {"probe": 0.78, "fine_tuned": 0.82, "finer_l1": 0.3},
        },
        {},
    ),
}
# Systems of hsdt, at both levels of noise: PSNR, spectral angle and parameters with which all its claims hold.
DENOISED = {
    "HSDT": {"psnr": 28.0, "sam": 1.7, "parameters": 90},
    "HSDT, the cube's own queries": {"psnr": 27.9, "sam": 1.7, "parameters": 90},
    "SSA (no learned queries)": {"psnr": 27.5, "sam": 1.8, "parameters": 80},
    "CNN": {"psnr": 26.0, "sam": 2.0, "parameters": 100},
    "noisy": {"psnr": 18.0, "sam": 5.0, "parameters": 0},
    "low_rank": {"psnr": 27.0, "sam": 1.9, "parameters": 0},
    "wavelet_pca": {"psnr": 24.0, "sam": 1.8, "parameters": 0},
    "total_variation": {"psnr": 23.0, "sam": 2.5, "parameters": 0},
}
ADAPTED = {
    "all weights": {"accuracy": 0.84, "parameters": 1000, "trained": 1000},
    "head alone (linear probe)": {"accuracy": 0.80, "parameters": 1000, "trained": 2},
    "LoRA and head": {"accuracy": 0.83, "parameters": 1000, "trained": 15},
    "AdaptFormer": {"accuracy": 0.84, "parameters": 1000, "trained": 15},
}
MET["adaptformer"] = (
    "accuracy",
    {
        f"{name}@{labels}": {**figures, "labels": labels}
        for name, figures in ADAPTED.items()
        for labels in (5, 10)
    },
    {},
)
MET["hsdt"] = (
    "psnr",
    {
        f"{name}@{sigma}": {**figures, "sigma": sigma}
        for name, figures in DENOISED.items()
        for sigma in (30.0, 50.0)
    },
    {},
)


def checked(slug: str, system: str = "", **change: object) -> list[str]:
    """Return the verdicts of a script's claims, one system's figures or a detail changed."""
    script = _load(SCRIPTS / f"{slug}.py")
    score, systems, details = MET[slug]
    runs = []
    for seed in range(5):
        for name, figures in systems.items():
            run = {"system": name.partition("@")[0], "seed": seed}
            run |= {**figures, **(change if name == system else {})}
            if isinstance(run.get(score), float):
                run[score] += 0.001 * seed
            runs.append(run)
    found = script.claims(runs, **{**details, **({} if system else change)})
    return [claim.verdict for claim in found if claim.required is not None]


@pytest.mark.parametrize("slug", MET)
def test_claims_hold_where_all_that_is_required_is_met(slug):
    assert set(checked(slug)) == {"holds"}


@pytest.mark.parametrize(
    ("slug", "system", "change", "failing"),
    [
        ("tnt", "ViT", {"accuracy": 0.915}, [0]),  # half a point
        ("tnt", "TNT without word attention", {"accuracy": 0.925}, [1]),
        ("tnt", "", {"inner_share": 0.3}, [2]),
        ("spectformer", "alpha 0 (attention)", {"oa": 0.51}, [0]),
        ("spectformer", "alpha 6 (spectral)", {"oa": 0.51}, [1]),
        ("spectformer", "attention first", {"oa": 0.501}, [2]),
        ("spectformer", "alpha 0 (attention)", {"macs": 7}, [3]),
        ("smt", "kernels of 3 x 3", {"accuracy": 0.91}, [0]),
        ("smt", "attention only", {"accuracy": 0.91}, [1]),
        ("smt", "attention only", {"macs": 4}, [2]),
        ("hornet", "ConvNeXt", {"accuracy": 0.91}, [0]),
        ("hornet", "HorNet, order 1", {"accuracy": 0.91}, [1]),
        ("hornet", "", {"growth": 11.0}, [2]),
        ("fmvit", "attention only", {"accuracy": 0.91}, [0]),
        ("fmvit", "convolutions only", {"accuracy": 0.91}, [1]),
        ("fmvit", "both", {"error": 1e-3}, [2]),
        ("fmvit", "both", {"fused_parameters": 9}, [3]),
        ("fmvit", "both", {"ratios": [0.9, 0.85, 0.1]}, [4]),
        ("dhvt", "ViT with positions, digits", {"accuracy": 0.865}, [0, 3]),
        ("dhvt", "ResNet, digits", {"accuracy": 0.91}, [1]),
        ("dhvt", "SOPE, DAFF, Indian Pines", {"accuracy": 0.84}, [6]),
        ("dhvt", "ViT with positions, Indian Pines", {"accuracy": 0.855}, [7]),
        ("swin", "fixed windows", {"accuracy": 0.93}, [0]),
        ("swin", "shifted windows", {"attention_macs": [1, 5]}, [1]),
        ("t2t_vit", "patches", {"accuracy": 0.955}, [0]),
        ("t2t_vit", "T2T, transformer", {"accuracy": 0.99}, [1]),
        ("t2t_vit", "T2T, transformer", {"accuracy": 0.93}, [2]),
        ("t2t_vit", "patches", {"parameters": 90}, [3]),
        ("ggem", "mean", {"accuracy": 0.86}, [0]),
        ("ggem", "max", {"accuracy": 0.86}, [1]),
        ("ggem", "mean", {"recall": 0.82}, [2]),
        ("ggem", "ggem", {"exponents": [3.0, 3.1]}, [3]),
        ("convnext", "windows", {"accuracy": 0.96}, [0]),
        ("convnext", "ConvNeXt, 3 x 3", {"accuracy": 0.96}, [1]),
        ("convnext", "time", {"ratios": [1.2, 1.1, 0.1]}, [2]),
        ("crossvit", "single", {"oa": 0.93}, [0]),
        ("crossvit", "sum", {"oa": 0.93}, [1]),
        ("crossvit", "", {"growth": 4.0}, [2]),
        ("efficientformer", "time of one image", {"ratios": [0.9, 0.9, 0.1]}, [0]),
        ("efficientformer", "supernet", {"shares": {"slimmed": 0.8}}, [1]),
        ("efficientformer", "narrowed", {"accuracy": 0.96}, [2]),
        ("efficientvit", "multi-head, one feed-forward", {"accuracy": 0.96}, [0]),
        ("efficientvit", "time of the usual blocks", {"ratios": [0.9, 0.9, 2.0]}, [1]),
        ("efficientvit", "sandwich, cascaded groups", {"similarity": 0.7}, [2]),
        ("efficientvit", "time of the hybrid", {"ratios": [1.9, 1.9, 9.0]}, [3]),
        ("essaformer", "bicubic", {"psnr": 30.2}, [0]),
        ("essaformer", "values alone", {"psnr": 30.7}, [1]),
        ("essaformer", "bicubic", {"sam": 1.8}, [2]),
        ("essaformer", "time", {"ratios": [1.2, 1.1, 0.1]}, [3]),
        ("essaformer", "time at twice the tokens", {"ratios": [2.6, 2.7, 0.1]}, [4]),
        ("channelvit", "ViT, sampled", {"oa": [0.80, 0.79, 0.70, 0.65, 0.6]}, [0]),
        ("channelvit", "ChannelViT", {"oa": [0.85, 0.82, 0.78, 0.55, 0.3]}, [1]),
        ("channelvit", "ViT", {"oa": [0.88, 0.80, 0.60, 0.40, 0.2]}, [2]),
        ("channelvit", "ViT", {"oa": [0.85, 0.84, 0.84, 0.40, 0.2]}, [3]),
        ("channelvit", "ChannelViT, sampled", {"oa": [0.90, 0.84, 0.70, 0.60, 0.5]}, [4]),
        ("satmae_pp", "one scale (SatMAE)", {"probe": 0.79}, [0]),
        ("satmae_pp", "not pre-trained", {"probe": 0.76}, [1]),
        ("satmae_pp", "not pre-trained", {"fine_tuned": 0.83}, [2]),
        ("satmae_pp", "one scale (SatMAE)", {"fine_tuned": 0.83}, [3]),
        ("satmae_pp", "two scales (SatMAE++)", {"finer_l1": 0.5}, [4]),
        ("adaptformer", "head alone (linear probe)@5", {"accuracy": 0.82}, [0]),
        ("adaptformer", "all weights@5", {"accuracy": 0.86}, [1]),
        ("adaptformer", "head alone (linear probe)@10", {"accuracy": 0.82}, [2]),
        ("adaptformer", "all weights@10", {"accuracy": 0.86}, [3]),
        ("adaptformer", "AdaptFormer@5", {"trained": 30}, [4]),
        # Claims 1 to 7 are about noise of 30/255, 8 to 14 about 50/255.
        ("hsdt", "CNN@30.0", {"psnr": 27.9}, [1]),
        ("hsdt", "noisy@50.0", {"psnr": 20.5}, [9]),
        ("hsdt", "CNN@50.0", {"sam": 1.6}, [10]),
        ("hsdt", "HSDT, the cube's own queries@30.0", {"psnr": 28.4}, [4]),
        ("hsdt", "SSA (no learned queries)@50.0", {"psnr": 28.1}, [12]),
        ("hsdt", "total_variation@30.0", {"psnr": 28.1}, [6]),
        ("hsdt", "wavelet_pca@50.0", {"sam": 1.6}, [14]),
        ("hsdt", "CNN@50.0", {"parameters": 80}, [0]),
    ],
)
def test_each_claim_fails_where_what_it_requires_is_not_met(slug, system, change, failing):
    verdicts = checked(slug, system, **change)
    assert [k for k, verdict in enumerate(verdicts) if verdict != "holds"] == failing


# -- what is recorded -------------------------------------------------------------------------------------------


# Records of an earlier form, without intervals, which say so in the docs; a full run replaces them.
EARLIER = {
    "channelvit",
    "convnext",
    "crossvit",
    "essaformer",
    "evit",
    "hsdt",
    "mctf",
    "satmae_pp",
}


def recorded_results() -> list[Path]:
    return [path for path in every_result() if path.stem not in EARLIER]


def every_result() -> list[Path]:
    return sorted((SCRIPTS / "results").glob("*.json"))


def test_only_records_that_are_known_for_it_lack_claims():
    assert {path.stem for path in every_result() if "claims" not in read_json(path)} == EARLIER


@pytest.mark.parametrize("path", recorded_results(), ids=lambda p: p.stem)
def test_recorded_words_and_table_follow_from_recorded_runs(path: Path):
    script, result = _load(SCRIPTS / f"{path.name.partition('.')[0]}.py"), read_json(path)
    said = statement(
        script.summary, script.claims, getattr(script, "remarks", None), result["runs"], result
    )
    assert json.loads(json.dumps(said)) == {key: result[key] for key in said}


@pytest.mark.parametrize("path", recorded_results(), ids=lambda p: p.stem)
def test_claims_can_fail(path: Path):
    """Had some system been at the bottom of the scale, a claim would not hold that holds with it at the top."""
    script, result = _load(SCRIPTS / f"{path.name.partition('.')[0]}.py"), read_json(path)
    if not any("accuracy" in run for run in result["runs"]):
        pytest.skip("not a comparison of accuracies")

    def failed(system: str, score: float) -> int:
        runs = [
            run | ({"accuracy": score} if run["system"] == system else {}) for run in result["runs"]
        ]
        said = statement(script.summary, script.claims, None, runs, result)
        return [claim["verdict"] for claim in said["claims"]].count("does not hold")

    systems = {run["system"] for run in result["runs"]}
    assert any(failed(system, -1.0) > failed(system, 2.0) for system in systems)
