"""AdaptFormer: train a narrow branch beside each feed-forward of a frozen transformer (arXiv 2205.13535)."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.adapter import AdapterSeam
from vitreous.layers.backbone import Backbone
from vitreous.layers.reference import join, rename_keys, substitute
from vitreous.methods._apply import apply
from vitreous.models import vit

CARD = Card(
    slug="adaptformer",
    title="AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition",
    kind="method",
    summary="Adds a trainable two-layer bottleneck parallel to each feed-forward of a frozen "
    "transformer.",
    when="One backbone shared by several tasks or scenes, with few labels each: one to two "
    "points better than a linear probe here, with under 2 % of the parameters trained, "
    "but three to four points below full fine-tuning.",
    paper="arXiv 2205.13535",
    year=2022,
    source_licence="MIT (ShoufaChen/AdaptFormer): re-implemented from the equations",
    tasks=["classify"],
    models=[
        "vit_*",
        "channelvit_*",
        "satmae_pp_*",
        "ggem_*",
        "swin_*",
        "coswin_*",
        "crossformer_*",
        "crossvit_*",
        "cvt_*",
        "t2t_vit_*",
        "tnt_*",
        "spectformer_*",
        "sret_*",
        "smt_*",
        "hornet_*",
        "fmvit_*",
        "dhvt_*",
        "lola_specvit_*",
        "convnext_*",
        "efficientformer_*",
    ],
    variants={"adaptformer": {}, "adaptformer_sequential": {"form": "sequential"}},
    published=[
        {"model": "vit_base", "bottleneck": 1, "added_m": 0.028, "SSv2": 50.03, "CIFAR-100": 83.52},
        {"model": "vit_base", "bottleneck": 4, "added_m": 0.083, "SSv2": 54.70, "CIFAR-100": 84.83},
        {
            "model": "vit_base",
            "bottleneck": 64,
            "added_m": 1.190,
            "added_gmacs": 0.24,
            "SSv2": 59.02,
            "CIFAR-100": 85.90,
        },
        {"model": "vit_base", "bottleneck": 128, "added_m": 2.370},
    ],
    recipe={
        "optimizer": "SGD, momentum 0.9, no weight decay",
        "learning_rate": "0.1 per 256 images",
        "schedule": "cosine",
        "epochs": 100,
        "warmup_epochs": 20,
        "drop_path": 0.0,
    },
    claim="With 1.5 % additional parameters, the only ones trained, better than full fine-tuning "
    "by 10 % (SSv2) and 19 % (HMDB51), relative.",
    miniature="Indian Pines, a small ViT trained on one half of the classes and adapted to the "
    "other with 5 or 10 labels per class, bottleneck 8. Required: OA at least 3 points above the "
    "linear probe and at most 1 point below full fine-tuning, with at most 2 % of the parameters "
    "trained.",
    notes=[
        "Usage: head_norm adds the batch norm of the authors' image head in front of the "
        "classifier, whose initialisation stays ours (0.02 instead of 0.01). For a single image "
        "it uses running statistics, also in training, where theirs fails.",
        "Usage: Dropout is 0.1, as for images; the authors' video models have none.",
        "Usage: The up-projection starts at zero, so an adapted network starts as the original, "
        "and the down-projection gets gradients from the second step on.",
        "Usage: The paper covers ViT and Swin; support for other models is ours. Blocks with a "
        "single branch (ConvNeXt, GFNet) get the adapter on the input of the feed-forward's "
        "norm; TNT gets adapters for words and patches, EfficientFormer in its token blocks "
        "only. EfficientViT has no feed-forward on tokens and is refused.",
        "As in the reference: The parallel branch reads the tokens before the feed-forward's "
        "norm, has no norm of its own and is exempt from stochastic depth and LayerScale; the "
        "sequential one reads the output of the feed-forward branch.",
        "Not included: The video models, and visual prompt tuning, which the authors' code has "
        "as a baseline.",
    ],
)

FORMS = ("parallel", "sequential")
NORMS = ("none", "in", "out")
LEARNED = "learned"


def trainable(name: str) -> bool:
    """Tell whether a parameter belongs to an adapter."""
    return any(part.startswith("adapter") for part in name.split("."))


class Adapter(nn.Module):
    """A bottleneck beside a feed-forward (eqs. 3-4): ``branch + s up(drop(relu(down(x))))``.

    Args:
        dim: token width.
        bottleneck: width between the two linear layers.
        form: ``parallel`` (x: the tokens before the feed-forward's norm) or ``sequential`` (x: what its branch gives).
        scale: s, or ``learned``, beginning at 1.
        layer_norm: where the adapter has a norm: ``none``, ``in`` (of x) or ``out`` (of what is added).
        dropout: between the linear layers.
    """

    def __init__(
        self,
        dim: int,
        bottleneck: int,
        *,
        form: str,
        scale: float | str,
        layer_norm: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.form, self.layer_norm = form, layer_norm
        self.norm = nn.Identity() if layer_norm == "none" else nn.LayerNorm(dim)
        self.down = nn.Linear(dim, bottleneck)
        self.act = nn.ReLU()
        self.drop = nn.Dropout(dropout)
        self.up = nn.Linear(bottleneck, dim)
        self.scale = nn.Parameter(torch.ones(1)) if isinstance(scale, str) else scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(
        self, tokens: Float[Tensor, "*batch dim"], branch: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        """Return the feed-forward's branch with the adapter's added."""
        x = tokens if self.form == "parallel" else branch
        if self.layer_norm == "in":
            x = self.norm(x)
        added = self.up(self.drop(self.act(self.down(x))))
        if self.layer_norm == "out":
            return branch + self.norm(added * self.scale)
        if isinstance(self.scale, Tensor):
            return torch.addcmul(branch, added, self.scale)
        return torch.add(branch, added, alpha=self.scale)

    def extra_repr(self) -> str:
        """Show the form."""
        scale = LEARNED if isinstance(self.scale, Tensor) else f"{self.scale:g}"
        return f"form={self.form}, scale={scale}, layer_norm={self.layer_norm}"


class FeatureNorm(nn.BatchNorm1d):
    """Batch norm without weights in front of a classifier; a single image is no batch and gets the running one."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6, affine=False)

    def forward(self, input: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """Normalise each feature."""
        if self.training and input.shape[0] == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, eps=self.eps)
        return super().forward(input)


def install(
    model: nn.Module,
    *,
    bottleneck: int = 64,
    form: str = "parallel",
    scale: float | str = 0.1,
    layer_norm: str = "none",
    dropout: float = 0.1,
    head_norm: bool = False,
    targets: str = "*",
) -> list[dict[str, Any]]:
    """Give the matching blocks of ``model`` adapters; but for ``head_norm`` its outputs stay the same.

    Args:
        model: a model whose blocks have a seam for adapters; blocks that carry one already are left as they are.
        bottleneck: width between the adapter's linear layers (r of the paper).
        form: ``parallel`` to the feed-forward, or ``sequential`` to it.
        scale: factor of what is added, or ``learned``.
        layer_norm: a norm of the adapter's own: ``none``, ``in`` or ``out``.
        dropout: between the adapter's linear layers.
        head_norm: put a batch norm without weights in front of the classifier.
        targets: shell pattern of the names of blocks to adapt, e.g. ``blocks.1?``.

    Returns:
        The blocks' names and how many weights each adapter has.

    Raises:
        ModelError: a setting out of range, no block that matches, or a classifier that takes no batch norm.
    """
    _check(bottleneck, form, scale, layer_norm, dropout)
    seams = [
        (name, module) for name, module in model.named_modules() if isinstance(module, AdapterSeam)
    ]
    found = [
        (name, seam) for name, seam in seams if fnmatch.fnmatch(name.rpartition(".")[0], targets)
    ]
    if not found and not any(isinstance(module, Adapter) for module in model.modules()):
        raise _nothing_to_adapt(model, seams, targets)
    if head_norm:
        _normalise_head(model)
    rows = []
    for name, seam in found:
        adapter = Adapter(
            seam.dim,
            bottleneck,
            form=form,
            scale=scale,
            layer_norm=layer_norm,
            dropout=dropout,
        )
        weight = next(model.parameters())
        model.set_submodule(name, adapter.to(weight.device, weight.dtype).train(seam.training))
        own = sum(parameter.numel() for parameter in adapter.parameters())
        rows.append({"block": name.rpartition(".")[0], "weights added": own})
    return rows


def from_reference(
    state_dict: Mapping[str, Tensor], kwargs: Mapping[str, Any]
) -> vit.VisionTransformer:
    """Build an adapted ViT from the arguments of the authors' VisionTransformer and load its weights.

    A classifier behind the batch norm of their training script (``head.0``, ``head.1``) is taken, too.

    Raises:
        ModelError: it has prompts, or adapters of an initialisation that the authors did not write.
    """
    tuning = kwargs["tuning_config"]
    if tuning.get("vpt_on"):
        raise ModelError(
            "The weights belong to a model with visual prompts, which vitreous does not have.",
            "Load one without them (vpt_on=False).",
        )
    weights = _rename(state_dict)
    head_norm = "head.1.weight" in weights
    trunk = {
        key.replace("head.1.", "head."): value
        for key, value in weights.items()
        if ".adapter." not in key and not key.startswith("head.0.")
    }
    if not tuning["ffn_adapt"]:  # adapters among the weights are then left over
        return vit.from_reference(weights if len(trunk) < len(weights) else trunk, kwargs)
    model = vit.from_reference(trunk, kwargs)
    if tuning["ffn_adapter_init_option"] != "lora":
        raise ModelError(
            f"The initialisation '{tuning['ffn_adapter_init_option']}' was never published.",
            "Give ffn_adapter_init_option='lora'.",
        )
    scalar = tuning["ffn_adapter_scalar"]
    adapted = apply(
        model,
        "adaptformer",
        bottleneck=tuning["ffn_num"],
        form=tuning["ffn_option"],
        scale=LEARNED if scalar == "learnable_scalar" else float(scalar),
        layer_norm=tuning["ffn_adapter_layernorm_option"],
        head_norm=head_norm,
    ).model
    adapted.load_state_dict(vit.rename(weights))
    assert isinstance(adapted, vit.VisionTransformer)
    return adapted


def _check(bottleneck: int, form: str, scale: float | str, layer_norm: str, dropout: float) -> None:
    """Refuse settings that make no adapter."""
    if bottleneck < 1:
        raise ModelError(
            f"bottleneck = {bottleneck} is out of range.", "Use 1 or more; 64 is common."
        )
    for key, value, known in (("form", form, FORMS), ("layer_norm", layer_norm, NORMS)):
        if value not in known:
            raise ModelError(
                f"AdaptFormer has no {key} '{value}'.",
                f"Choose {', '.join(known[:-1])} or {known[-1]}.",
            )
    if scale != LEARNED if isinstance(scale, str) else not math.isfinite(scale):
        raise ModelError(
            f"AdaptFormer cannot scale by '{scale}'.", f"Give a number, or '{LEARNED}'."
        )
    if not 0 <= dropout < 1:
        raise ModelError(f"dropout = {dropout} is out of range.", "Use at least 0 and less than 1.")


def _nothing_to_adapt(
    model: nn.Module, seams: list[tuple[str, AdapterSeam]], targets: str
) -> ModelError:
    if seams:
        return ModelError(
            f"No block matches '{targets}'.",
            f"Choose another pattern for 'targets'; the first block is '{seams[0][0].rpartition('.')[0]}'.",
        )
    return ModelError(
        f"{type(model).__name__} has no token feed-forward layers for AdaptFormer's parallel adapters.",
        "Use 'lora', which adapts any linear layer.",
    )


def _normalise_head(model: nn.Module) -> None:
    """Put the batch norm in front of the classifier, where there is none yet."""
    head = getattr(model, "head", None)
    if isinstance(head, nn.Sequential) and isinstance(head[0], FeatureNorm):
        return
    if not isinstance(model, Backbone) or not isinstance(head, nn.Linear):
        raise ModelError(
            f"The classifier of {type(model).__name__} is not a linear layer on one vector per image.",
            "Omit head_norm.",
        )
    norm = FeatureNorm(head.in_features).to(head.weight.device, head.weight.dtype)
    model.head = nn.Sequential(norm, head).train(model.training)


def _rename(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the authors' three projections into one, and give their blocks the names of timm and the adapters ours.

    Where one of three projections or biases is missing, the others stay as they are, and are told as left over.
    """
    names = {
        ".fc1.": ".mlp.fc1.",
        ".fc2.": ".mlp.fc2.",
        ".adaptmlp.down_proj.": ".adapter.down.",
        ".adaptmlp.up_proj.": ".adapter.up.",
        ".adaptmlp.adapter_layer_norm_before.": ".adapter.norm.",
        ".adaptmlp.scale": ".adapter.scale",
    }
    rules = [(re.escape(old), new) for old, new in names.items()]
    renamed = rename_keys(state_dict, partial(substitute, rules))
    return join(renamed, [f".attn.{part}_proj." for part in "qkv"], ".attn.qkv.")
