"""Files that people download: timm's layouts at full size, wrappers around networks, and damaged values."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from timm_fixtures import timm_fixture, timm_layouts
from vitreous.catalog.registry import create_model, system_module
from vitreous.checkpoints import assembly
from vitreous.checkpoints import convert as others
from vitreous.checkpoints.blueprints import Blueprint
from vitreous.checkpoints.convert import convert
from vitreous.checkpoints.foreign import read_foreign
from vitreous.checkpoints.layouts import recognise
from vitreous.checkpoints.load_report import PartialLoadError
from vitreous.checkpoints.model_files import load_model, save_model
from vitreous.checkpoints.tensors import load_tensors, save_tensors
from vitreous.errors import CheckpointError
from vitreous.layers.bands import Bands
from vitreous.testing import images, make

# timm's name: the variant, millions of parameters as published, what the weights say beyond it.
FULL_SIZE = {
    "vit_tiny_patch16_224": ("vit_tiny", 5.7, {}),
    "vit_small_patch16_224": ("vit_small", 22.1, {}),
    "vit_base_patch16_224": ("vit_base", 86.6, {}),
    "deit_small_distilled_patch16_224": ("vit_small_distilled", 22.4, {}),
    "deit3_small_patch16_224": (
        "vit_small", 22.1, {"layer_scale": 1e-5, "class_position": False},
    ),
    "vit_small_patch14_dinov2": ("vit_small", 22.1, {"layer_scale": 1e-5, "token_size": 14}),
    "vit_small_patch14_reg4_dinov2": (
        "vit_small", 22.1,
        {"layer_scale": 1e-5, "token_size": 14, "registers": 4, "class_position": False},
    ),
    "swin_tiny_patch4_window7_224": ("swin_tiny", 28.3, {}),
    "swin_base_patch4_window12_384": ("swin_base_384", 87.9, {}),
    "convnext_tiny": ("convnext_tiny", 28.6, {}),
    "convnext_base": ("convnext_base", 88.6, {}),
    "crossvit_small_240": ("crossvit_small", 26.9, {}),
    "crossvit_15_dagger_240": ("crossvit_15_dagger", 28.2, {}),
    "efficientvit_m0": ("efficientvit_m0", 2.3, {"mask_padding": False}),
    "efficientvit_m4": ("efficientvit_m4", 8.8, {"mask_padding": False}),
    "efficientformer_l1": ("efficientformer_l1", 12.3, {}),
    "efficientformer_l7": ("efficientformer_l7", 82.2, {}),
    "tnt_s_patch16_224": ("tnt_small", 23.8, {}),
    "tnt_b_patch16_224": ("tnt_base", 65.4, {}),
}  # fmt: skip
SIZES = {"swin_base_384": 384}
ELSEWHERE = {
    "tiny_vit_5m_224": "timm's TinyViT",
    "tiny_vit_21m_512": "timm's TinyViT",
    "vitamin_small_224": "timm's ViTamin",
    "vitamin_base_224": "timm's ViTamin",
    "resnet50": "a ResNet",
}


def empty(shapes):
    """Return tensors without memory."""
    whole = ("num_batches_tracked", "idxs")
    return {
        name: torch.zeros(
            shape, device="meta", dtype=torch.long if name.endswith(whole) else torch.float32
        )
        for name, shape in shapes.items()
    }


def zeros(shapes, path):
    """Write tensors of zeros into a file."""
    tensors = {name: torch.zeros_like(value, device="cpu") for name, value in empty(shapes).items()}
    torch.save(tensors, path)
    return path


# -- timm at full size --------------------------------------------------------------------------------------


@pytest.mark.parametrize("timm", FULL_SIZE)
def test_every_full_size_layout_is_accounted_for(timm):
    """Every tensor has its place and every place its tensor; without memory, so that it takes no time."""
    variant, millions, options = FULL_SIZE[timm]
    theirs = empty(timm_layouts()[timm])
    layout = recognise(theirs)
    assert layout is not None and variant.startswith(layout.slug)
    ours = system_module(variant).rename(theirs)
    probe, read = others._read_settings(Blueprint(variant, {}, Bands(3), 2, 224), ours)
    assert read == options
    probe = others._usual_size(ours, probe)
    expected = {"token_size": 518}.get(next((k for k in options if k == "token_size"), ""), 224)
    assert probe.image_size == SIZES.get(variant, expected)
    classes = others._count_classes(ours, probe)
    assert classes == (None if "dinov2" in timm else 1000)
    own = replace(probe, num_classes=classes or 2).build_empty().state_dict()
    head = () if classes else assembly.head_parameters(probe)
    assert {k: v.shape for k, v in own.items() if k not in head} == {
        k: v.shape for k, v in ours.items()
    }
    assert round(others._count_parameters(ours) / 1e6, 1) == millions
    assert others._variant_like(layout.slug, ours) == variant


@pytest.mark.parametrize("timm", ELSEWHERE)
def test_what_vitreous_does_not_have_is_named(timm, tmp_path):
    shapes = timm_layouts()[timm]
    assert recognise(shapes) == (ELSEWHERE[timm], None)
    small = {name: [1] * len(shape) for name, shape in shapes.items()}
    with pytest.raises(CheckpointError, match=f"{ELSEWHERE[timm]}, not like vit_tiny.*not include"):
        convert(zeros(small, tmp_path / "w.pth"), "vit_tiny")


def test_convert_says_what_it_found(cli, tmp_path):
    zeros(timm_layouts()["efficientvit_m0"], tmp_path / "w.pth")
    done = cli("convert", "w.pth", "--model", "efficientvit_m0")
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "found: timm's EfficientViT (MSRA), 2.3 M parameters, 1000 classes" in words
    assert "read from the checkpoint: mask_padding=false" in words
    done = cli("convert", "w.pth", "--model", "swin_tiny", "-o", "s.safetensors")
    assert done.returncode == 2
    assert "looks like timm's EfficientViT (MSRA), not like swin_tiny" in done.stderr
    assert "efficientvit_m0: use that name" in done.stderr
    assert not (tmp_path / "s.safetensors").exists()
    with pytest.raises(PartialLoadError, match="They look like efficientvit_m0"):
        convert(tmp_path / "w.pth", "efficientvit_m4")
    done = cli("convert", "w.pth", "--model", "efficientvit_m0", "--json")
    told = json.loads(done.stdout)
    assert (told["layout"], told["classes"], told["parameters"]) == (
        "timm's EfficientViT (MSRA)", 1000, 2_349_436,
    )  # fmt: skip
    assert told["found"] == "timm's EfficientViT (MSRA), 2.3 M parameters, 1000 classes"


SMALL = {
    "vit": ("vit_test", {"dim": 32, "token_size": 8, "mlp_ratio": 4.0}),
    "swin": (
        "swin_test", {"dim": 12, "mlp_ratio": 4.0, "token_size": 2},
    ),
    "convnext": ("convnext_test", {"dims": [8, 16, 24, 32], "stem_stride": 4}),
    "crossvit": (
        "crossvit_test",
        {"dims": [16, 32], "depths": [[1, 2, 1]] * 2, "heads": [2, 4], "conv_stem": False,
         "token_sizes": [8, 16], "branch_sizes": [48, 32]},
    ),
    "efficientvit": (
        "efficientvit_test",
        {"dims": [16, 32, 48], "key_dim": 8, "window": 7, "heads": [2] * 3, "kernels": [5] * 4,
         "total_stride": 16},
    ),
    "efficientformer": (
        "efficientformer_test",
        {"dims": [8, 16, 24, 32], "heads": 8, "key_dim": 32, "value_dim": 128, "mlp_ratio": 4.0},
    ),
    "tnt": (
        "tnt_test",
        {"dim": 24, "inner_dim": 8, "heads": 3, "token_size": 8, "inner_stride": 4,
         "mlp_ratio": 4.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("slug", SMALL)
def test_timms_scores_through_files(slug, tmp_path):
    fixture = timm_fixture(slug)
    torch.save(fixture["state_dict"], tmp_path / "w.pth")
    name, arguments = SMALL[slug]
    model, report = convert(
        tmp_path / "w.pth", name, model_args=arguments, image_size=fixture["input"].shape[-1]
    )
    # The eps leaves no trace in the tensors: timm's ConvNeXt, CrossViT and ViT have ours.
    with torch.no_grad():
        torch.testing.assert_close(model(fixture["input"]), fixture["output"], rtol=1e-4, atol=1e-5)
    assert report.layout.startswith("timm's ") and report.complete and not report.unread
    assert report.classes == 5 and f"{report.parameters:,} parameters, 5 classes" in report.found
    again, _ = load_model(save_model(model, tmp_path / "m.safetensors"))
    with torch.no_grad():
        assert torch.equal(again(fixture["input"]), model(fixture["input"]))


def test_options_that_a_variant_states_are_not_read_off_the_weights(tmp_path):
    """Weights without a distillation token do not make a distilled variant an undistilled one."""
    path = zeros(timm_layouts()["vit_tiny_patch16_224"], tmp_path / "w.pth")
    with pytest.raises(PartialLoadError, match=r"3 missing.*They look like vit_tiny "):
        convert(path, "vit_tiny_distilled")


def test_a_layout_that_nobody_knows_is_said(tmp_path):
    torch.save({"one.weight": torch.zeros(3, 3), "two.weight": torch.zeros(3)}, tmp_path / "w.pth")
    for given in ({}, {"num_classes": 2}):
        with pytest.raises(
            CheckpointError, match=r"not look like vit_test.*an unknown layout, 12 "
        ):
            convert(tmp_path / "w.pth", "vit_test", **given)
    with pytest.raises(PartialLoadError, match="an unknown layout, 12 parameters, no head"):
        convert(tmp_path / "w.pth", "vit_test", num_classes=2, bands=3)


def test_positions_of_oblong_images_need_their_grid(tmp_path):
    fixture = timm_fixture("vit_oblong")
    torch.save(fixture["state_dict"], tmp_path / "w.pth")
    with pytest.raises(PartialLoadError, match="not square, give their height and width"):
        convert(tmp_path / "w.pth", "vit_test", model_args=SMALL["vit"][1])
    arguments = {**SMALL["vit"][1], "grid": [3, 5]}
    model, report = convert(tmp_path / "w.pth", "vit_test", model_args=arguments)
    assert report.read == {"pool": "mean", "norm_last": True}
    with torch.no_grad():
        torch.testing.assert_close(model(fixture["input"]), fixture["output"], rtol=1e-4, atol=1e-5)


# -- wrappers -----------------------------------------------------------------------------------------------


def test_prefixes_go_although_others_stand_beside_them(tmp_path):
    plain = timm_fixture("vit")["state_dict"]
    given = {"model_args": SMALL["vit"][1], "image_size": 32}
    torch.save(plain, tmp_path / "plain.pth")
    torch.save(
        {
            "model_ema": {
                "n_averaged": torch.tensor(7),
                **{f"module.{k}": v for k, v in plain.items()},
            }
        },
        tmp_path / "averaged.pth",
    )
    torch.save(
        {
            "state_dict": {
                **{f"model.{k}": v for k, v in plain.items()},
                "criterion.weight": torch.ones(9),
            }
        },
        tmp_path / "criterion.ckpt",
    )
    save_file(
        {f"model._orig_mod.{k}": v.clone() for k, v in plain.items()} | {"loss.scale": torch.ones(2)},
        tmp_path / "compiled.safetensors",
    )  # fmt: skip
    expected, _ = convert(tmp_path / "plain.pth", "vit_test", **given)
    for name, beside in (
        ("averaged.pth", "n_averaged"),
        ("criterion.ckpt", "criterion.weight"),
        ("compiled.safetensors", "loss.scale"),
    ):
        model, report = convert(tmp_path / name, "vit_test", **given)
        assert report.unread == report.left_over == (beside,) and report.complete
        for key, value in expected.state_dict().items():
            assert torch.equal(model.state_dict()[key], value)


def test_a_tensor_beside_the_prefix_that_the_network_wants_is_used(tmp_path):
    plain = timm_fixture("vit")["state_dict"]
    content = {k if k.startswith("head") else f"backbone.{k}": v for k, v in plain.items()}
    torch.save(content, tmp_path / "w.pth")
    model, report = convert(
        tmp_path / "w.pth", "vit_test", model_args=SMALL["vit"][1], image_size=32
    )
    assert report.unread == () and torch.equal(model.head.weight, plain["head.weight"])


def test_a_prefix_of_few_or_of_names_that_are_there_is_none(tmp_path):
    for content in (
        {"module.a": 1, "b": 2, "c": 3},
        {"module.a": 1, "a": 2},
        {"a": 1, "b": 2},
    ):
        tensors = {key: torch.full((2,), float(value)) for key, value in content.items()}
        torch.save(tensors, tmp_path / "w.pth")
        found = read_foreign(tmp_path / "w.pth")
        assert (set(found.tensors), found.beside) == (set(content), ())


def test_what_pretraining_and_authors_leave_in_files_is_told(tmp_path):
    """A decoder, a tensor that nobody reads: not used, not an obstacle, and said."""
    tnt = create_model("tnt_test", bands=3, num_classes=2, image_size=15)
    torch.save({**tnt.state_dict(), "outer_tokens": torch.zeros(1, 25, 16)}, tmp_path / "w.pth")
    _, report = convert(tmp_path / "w.pth", "tnt_test", image_size=15)
    assert report.unread == report.left_over == ("outer_tokens",)
    assert (report.rewritten, report.complete) == ((), True)
    satmae = create_model("satmae_pp_test", bands=10, num_classes=2, image_size=15)
    content = {**satmae.state_dict(), "decoder_pred.0.weight": torch.zeros(3), "odd": torch.ones(1)}
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(PartialLoadError, match=r"1 unexpected \(odd\)") as refused:
        convert(tmp_path / "w.pth", "satmae_pp_test", image_size=15, bands=10)
    assert refused.value.report.unread == ("decoder_pred.0.weight",)


# -- values, and files of another kind ----------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(value, tmp_path):
    state = {key: tensor.clone() for key, tensor in timm_fixture("vit")["state_dict"].items()}
    state["blocks.1.attn.qkv.weight"][3, 5] = value
    torch.save(state, tmp_path / "bad.pth")
    words = "infinite" if value in (float("inf"), float("-inf")) else "NaN"
    said = rf"bad\.pth holds NaN or infinite .*blocks\.1\.attn\.qkv\.weight \({words}\)"
    for partial in (False, True):
        with pytest.raises(CheckpointError, match=said):
            convert(tmp_path / "bad.pth", "vit_test", model_args=SMALL["vit"][1], partial=partial)
    path = save_model(make("vit_test"), tmp_path / "m.safetensors")
    tensors, header = load_tensors(path)
    tensors["norm.bias"][2] = value
    save_tensors(path, tensors, header)
    for partial in (False, True):
        with pytest.raises(CheckpointError, match=rf"norm\.bias \({words}\)"):
            load_model(path, partial=partial)


def test_load_model_names_convert_for_the_files_of_others(tmp_path):
    torch.save(timm_fixture("vit")["state_dict"], tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"vitreous convert .*x\.pth --model NAME"):
        load_model(tmp_path / "x.pth")
    save_file({"a": torch.zeros(2)}, tmp_path / "theirs.safetensors")
    with pytest.raises(CheckpointError, match=r"vitreous convert .*theirs\.safetensors --model"):
        load_model(tmp_path / "theirs.safetensors")


def test_misshapen_tables_of_distances_are_told(tmp_path):
    """A table that is not square is not resampled into one."""
    for slug in ("efficientformer", "efficientvit"):
        name = f"{slug}_test"
        state = dict(create_model(name, bands=3, num_classes=2, image_size=64).state_dict())
        key = next(key for key in state if key.endswith(("bias.table", "position.table")))
        state[key] = torch.zeros(len(state[key]) + 2, state[key].shape[1])
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(PartialLoadError, match="with a different shape"):
            convert(tmp_path / "w.pth", name, image_size=64)


def test_our_own_names_are_said_to_be_ours(tmp_path):
    model = make("vit_test", bands=3)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    again, report = convert(tmp_path / "w.pth", "vit_test", image_size=15)
    assert report.found.startswith("vitreous's own names, ")
    with torch.no_grad():
        assert torch.equal(again(images(2, 3, 15)), model.eval()(images(2, 3, 15)))
