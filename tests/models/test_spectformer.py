from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vitreous
from fixtures_reader import load_fixture
from vitreous.catalog.registry import card, create_model
from vitreous.errors import ModelError
from vitreous.inference.cost import count_cost
from vitreous.layers.transforms import SpectralGate, resize_filter
from vitreous.models import spectformer
from vitreous.models.spectformer import Attention, SpectFormer
from vitreous.models.vit import VisionTransformer
from vitreous.testing import check_model

PLAIN = {"dims": [12], "depths": [4], "heads": [3], "mlp_ratios": [2.0], "token_size": 3}
H = {
    "dims": [6, 8, 12, 16],
    "depths": [1, 2, 1, 1],
    "heads": [2, 2, 3, 4],
    "mlp_ratios": [3.0, 2.0, 2.0, 2.0],
    "alpha": 3,
    "stem_dim": 5,
}
H_KWARGS = {
    "num_classes": 5,
    "stem_hidden_dim": 5,
    "embed_dims": H["dims"],
    "depths": H["depths"],
    "num_heads": H["heads"],
    "mlp_ratios": H["mlp_ratios"],
}


def small(arguments, **changes):
    torch.manual_seed(0)
    shape = {"bands": 3, "num_classes": 5, "image_size": 24}
    model = SpectFormer(**{**shape, **arguments, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


def gate_of(dim, grid, filter_=None):
    gate = SpectralGate(dim, grid)
    if filter_ is not None:
        gate.weight.data = torch.view_as_real(filter_.contiguous())
    return gate


@pytest.fixture
def fixture():
    return load_fixture("spectformer")


@torch.no_grad()
def test_equals_the_reference(fixture):
    model = vitreous.from_reference("spectformer", fixture["state_dict"], fixture["kwargs"]).eval()
    kept = {}
    for number in (0, 5):
        model.stages[0][number].register_forward_hook(
            lambda _, __, y, number=number: kept.update({f"block{number}": y.flatten(1, 2)})
        )
    output = {"logits": model(fixture["input"])} | kept
    torch.testing.assert_close(output, fixture["output"], rtol=1e-5, atol=1e-5)


# -- a naive H family, in the authors' layout ---------------------------------------------------------------


def reference_weights(model):
    """Return the weights of an H model as the authors' code would have saved them."""
    weights = {}
    for key, value in model.state_dict().items():
        first, *rest = key.split(".")
        if first == "embeds" and rest[0] == "0":
            key = ".".join(rest[1:])
            key = key.replace("pixels", "conv.0").replace("reduce.", "")
            if key.startswith("hidden"):
                _, number, name = key.split(".")
                key = f"conv.{int(number) + 1}.{name}"
            key = f"patch_embed1.{key}"
        elif first in {"embeds", "stages", "norms"}:
            name = {"embeds": "patch_embed", "stages": "block", "norms": "norm"}[first]
            key = ".".join([f"{name}{int(rest[0]) + 1}", *rest[1:]])
            spectral = key.endswith("mixer.weight")
            key = key.replace("mixer.weight", "attn.complex_weight").replace("mixer", "attn")
            key = key.replace("dwconv", "dwconv.dwconv")
            if ".qkv." in key and not spectral:
                width = len(value) // 3
                weights[key.replace("qkv", "q")] = value[:width]
                key, value = key.replace("qkv", "kv"), value[width:]
        elif first == "class_block":
            inner = "attn." if rest[0] in {"q", "kv", "proj"} else ""
            key = f"post_network.0.{inner}{'.'.join(rest)}"
        weights[key.replace("cell_head", "aux_head")] = value
    return weights


def linear(weights, name, x):
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(weights, name, x, eps):
    weight = weights[f"{name}.weight"]
    return F.layer_norm(x, weight.shape, weight, weights[f"{name}.bias"], eps)


def conv(weights, name, x, stride=1, groups=1):
    weight = weights[f"{name}.weight"]
    padding = weight.shape[-1] // 2
    return F.conv2d(x, weight, weights.get(f"{name}.bias"), stride, padding, groups=groups)


def naive_attention(weights, name, query, x, heads):
    q = linear(weights, f"{name}.q", query)
    k, v = linear(weights, f"{name}.kv", x).chunk(2, -1)
    parts = [
        (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
        for q, k, v in zip(*(t.chunk(heads, -1) for t in (q, k, v)), strict=True)
    ]
    return linear(weights, f"{name}.proj", torch.cat(parts, -1))


def naive_gate(weight, x):
    """Convolve around the edges with the kernel that the filter is the transform of, term by term."""
    h, w = x.shape[:2]
    kernel = torch.fft.irfft2(torch.view_as_complex(weight), s=(h, w), dim=(0, 1))
    filtered = torch.zeros_like(x)
    for down in range(h):
        for right in range(w):
            filtered += kernel[down, right] * x.roll((down, right), (0, 1))
    return filtered


def naive_h(weights, x, eps):
    """Classify one image."""
    x = x[None]
    for number, stride in ((0, 2), (3, 1), (6, 1)):
        x = conv(weights, f"patch_embed1.conv.{number}", x, stride)
        at = f"patch_embed1.conv.{number + 1}"
        names = ("running_mean", "running_var", "weight", "bias")
        x = F.batch_norm(x, *(weights[f"{at}.{part}"] for part in names)).relu()
    for stage, depth in enumerate(H["depths"], start=1):
        x = conv(weights, f"patch_embed{stage}.proj", x, 2)
        h, w = x.shape[2:]
        tokens = norm(weights, f"patch_embed{stage}.norm", x[0].flatten(1).T, 1e-5)
        for number in range(depth):
            at = f"block{stage}.{number}"
            y = norm(weights, f"{at}.norm1", tokens, eps)
            if stage <= 2:
                y = naive_gate(weights[f"{at}.attn.complex_weight"], y.unflatten(0, (h, w)))
                y = y.flatten(0, 1)
            else:
                y = naive_attention(weights, f"{at}.attn", y, y, H["heads"][stage - 1])
            tokens = tokens + y
            y = linear(weights, f"{at}.mlp.fc1", norm(weights, f"{at}.norm2", tokens, eps))
            y = conv(weights, f"{at}.mlp.dwconv.dwconv", y.T.unflatten(1, (h, w)), 1, y.shape[1])
            tokens = tokens + linear(weights, f"{at}.mlp.fc2", F.gelu(y.flatten(1).T))
        if stage < 4:
            tokens = norm(weights, f"norm{stage}", tokens, eps)
            x = tokens.T.unflatten(1, (h, w))[None]
    at = "post_network.0"
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens])
    y = norm(weights, f"{at}.norm1", tokens, eps)
    first = tokens[:1] + naive_attention(weights, f"{at}.attn", y[:1], y, H["heads"][-1])
    y = F.gelu(linear(weights, f"{at}.mlp.fc1", norm(weights, f"{at}.norm2", first, eps)))
    first = first + linear(weights, f"{at}.mlp.fc2", y)
    tokens = norm(weights, "norm4", torch.cat([first, tokens[1:]]), eps)
    scores = linear(weights, "head", tokens[0])
    if "aux_head.weight" in weights:
        scores = scores + 0.5 * linear(weights, "aux_head", tokens[1:]).max(0)[0]
    return scores


@pytest.mark.parametrize("labels", [True, False])
@torch.no_grad()
def test_h_equals_a_naive_one_in_the_authors_layout(labels):
    # 36 pixels: maps of 9, 5, 3 and 2 cells; both filters on odd grids.
    original = small(H, image_size=36, stem_stride=4, token_labels=labels, norm_eps=1e-5)
    weights = reference_weights(original)
    kwargs = {**H_KWARGS, "token_label": labels}
    model = vitreous.from_reference("spectformer", weights, kwargs).eval()
    x = torch.randn(2, 3, 36, 36)
    expected = torch.stack([naive_h(weights, image, 1e-5) for image in x])
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(x), original(x))


def test_eps_of_the_reference_follows_its_norm_layer():
    weights = reference_weights(small(H, stem_stride=4))
    kwargs = {**H_KWARGS, "norm_layer": partial(nn.LayerNorm, eps=1e-6)}
    model = spectformer.from_reference(weights, kwargs)
    assert model.stages[0][0].norm1.eps == model.norms[-1].eps == 1e-6
    assert model.embeds[1].norm.eps == 1e-5


# -- the filter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [6, 7])
@torch.no_grad()
def test_a_filter_of_ones_is_the_identity(grid):
    x = torch.randn(2, grid, grid, 3)
    ones = torch.ones(grid, grid // 2 + 1, 3, dtype=torch.complex64)
    torch.testing.assert_close(gate_of(3, grid, ones)(x), x, rtol=0, atol=2e-6)
    scale = torch.tensor([0.5, -2.0, 3.0])
    torch.testing.assert_close(gate_of(3, grid, ones * scale)(x), x * scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [6, 7])
@torch.no_grad()
def test_the_filter_is_a_circular_convolution(grid):
    # Random weights are not Hermitian where they would have to be; the transform back sees to it.
    gate, x = gate_of(3, grid), torch.randn(grid, grid, 3)
    gate.weight.mul_(50)
    expected = naive_gate(gate.weight, x)
    torch.testing.assert_close(gate(x[None])[0], expected, rtol=1e-4, atol=1e-5)
    shifted = gate(x[None].roll((2, 3), (1, 2)))
    torch.testing.assert_close(shifted[0], expected.roll((2, 3), (0, 1)), rtol=1e-4, atol=1e-5)


def test_parameters_of_a_filter():
    assert sum(p.numel() for p in SpectralGate(384, 14).parameters()) == 86_016


@pytest.mark.parametrize("sides", [(7, 12), (8, 13), (6, 9)])
@torch.no_grad()
def test_a_small_kernel_survives_another_grid(sides):
    old, new = sides
    kernel = torch.zeros(old, old, 2)
    for down in (-2, -1, 0, 1, 2):
        for right in (-1, 0, 2):
            kernel[down, right] = torch.randn(2)
    gate = gate_of(2, old, torch.fft.rfft2(kernel, dim=(0, 1)))
    larger = gate_of(2, new)
    larger.weight.data = resize_filter(gate.weight, (new, new))
    impulse = torch.zeros(1, new, new, 2)
    impulse[:, 3, 3] = 1
    response = larger(impulse)
    torch.testing.assert_close(response, gate(impulse))  # the gate itself carries it over, too
    for down in (-2, -1, 0, 1, 2):
        for right in (-1, 0, 2):
            found = response[0, 3 + down, 3 + right]
            torch.testing.assert_close(found, kernel[down, right], rtol=1e-4, atol=1e-5)
    back = resize_filter(larger.weight, (old, old))
    torch.testing.assert_close(back, gate.weight, rtol=1e-4, atol=1e-5)


# -- the architecture ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_without_spectral_blocks_it_is_a_vit():
    model = small(PLAIN, alpha=0)
    vit = VisionTransformer(
        3, 5, 24, dim=12, depth=4, heads=3, token_size=3, mlp_ratio=2.0, pool="mean"
    ).eval()
    weights = {}
    for key, value in model.state_dict().items():
        key = key.replace("embeds.0.pixels", "patch_embed").replace(
            "embeds.0.positions", "pos_embed"
        )
        key = key.replace("stages.0", "blocks").replace("mixer", "attn")
        weights[key.replace("norms.0", "norm")] = value
    vit.load_state_dict(weights)
    x = torch.randn(2, 3, 24, 24)
    torch.testing.assert_close(model(x), vit(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_with_spectral_blocks_only_it_is_gfnet():
    model, x = small(PLAIN, alpha=4), torch.randn(1, 3, 24, 24)
    y = model.embeds[0](x)
    for block in model.stages[0]:
        filtered = naive_gate(block.mixer.weight, block.norm1(y)[0])[None]
        y = y + block.mlp(block.norm2(filtered))
    expected = model.head(model.norms[0](y).mean((1, 2)))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        ({**PLAIN, "alpha": 1}, "saaa"),
        ({**PLAIN, "alpha": 1, "attention_first": True}, "aaas"),
        (H, "sssaa"),
        ({**H, "alpha": 2}, "ssaaa"),
    ],
)
def test_alpha_counts_the_spectral_blocks(arguments, kinds):
    model = small(arguments)
    mixers = [block.mixer for stage in model.stages for block in stage]
    assert [isinstance(mixer, SpectralGate) for mixer in mixers] == [k == "s" for k in kinds]
    assert [isinstance(mixer, Attention) for mixer in mixers] == [k == "a" for k in kinds]


def test_h_variant_keeps_the_contract():
    check_model("spectformer_h_test")


def test_the_readme_leaves_out_the_products_of_attention():
    name = "spectformer_h_small"
    with torch.device("meta"):
        model = create_model(name, bands=3, num_classes=1000, image_size=224)
    macs = count_cost(model, 3, 224).macs
    for stage, cells in zip(model.stages, (56**2, 28**2, 14**2, 7**2), strict=True):
        for block in stage:
            if isinstance(block.mixer, Attention):
                macs -= 2 * cells**2 * block.norm1.normalized_shape[0]
    row = next(r for r in card(name).published if r["variant"] == name)
    assert macs / 1e9 == pytest.approx(row["readme_gmacs"], rel=0.01)


def test_spectral_blocks_save_multiply_adds():
    macs = [count_cost(small(PLAIN, alpha=alpha), 3, 24).macs for alpha in range(5)]
    cells, dim = 64, 12
    saved = 4 * cells * dim**2 + 2 * cells**2 * dim
    assert [a - b for a, b in pairwise(macs)] == [saved] * 4


@torch.no_grad()
def test_half_the_best_cell_adds_to_the_class_token():
    model, x = small(H, token_labels=True), torch.randn(2, 3, 24, 24)
    features = model.forward_features(x)
    with_cells = model(x)
    model.cell_head = None
    extra = (with_cells - model(x)) * 2
    cells = small(H, token_labels=True).cell_head(features[:, 1:])
    torch.testing.assert_close(extra, cells.max(1)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arguments", [PLAIN, H])
@torch.no_grad()
def test_weights_move_to_another_size(arguments):
    model, larger = small(arguments), small(arguments, image_size=42)
    if arguments is H:
        larger = small(arguments, image_size=42, stem_stride=model.stride)
    larger.load_state_dict(spectformer.resize(model.state_dict(), larger))
    x = torch.randn(1, 3, 42, 42)
    assert model.any_size
    torch.testing.assert_close(model(x), larger(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 24, 33)).shape == (1, 5)


@pytest.mark.parametrize(
    ("size", "stride", "last"), [(224, 4, 7), (128, 4, 4), (64, 2, 4), (33, 1, 5), (9, 1, 2)]
)
def test_the_stem_shrinks_with_the_image(size, stride, last):
    model = small(H, image_size=size)
    assert model.stride == stride
    assert model.forward_levels(torch.zeros(1, 3, size, size))[-1].shape[2:] == (last, last)


@pytest.mark.parametrize(("size", "side"), [(224, 16), (64, 8), (33, 4), (15, 2), (9, 1)])
def test_patches_shrink_with_the_image(size, side):
    assert small(PLAIN, image_size=size, token_size=None).stride == side


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({**PLAIN, "heads": [5]}, "5 heads"),
        ({**PLAIN, "depths": [2, 2]}, "different lengths"),
        ({**PLAIN, "token_labels": True}, "H family only"),
        ({**PLAIN, "token_size": 25}, "needs images of 25 pixels"),
        ({**H, "stem_stride": 3}, "no stride 3"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ModelError, match=words):
        small(arguments)


def test_an_image_without_a_patch_is_refused():
    with pytest.raises(ModelError, match="needs images of 3 pixels"):
        small(PLAIN)(torch.zeros(1, 3, 24, 2))
