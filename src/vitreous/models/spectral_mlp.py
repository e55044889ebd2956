"""A multilayer perceptron on the spectra of single pixels."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from vitreous.catalog.arguments import ImageSize, Share, Size
from vitreous.catalog.card import Card
from vitreous.layers.backbone import Backbone, FeatureInfo

CARD = Card(
    slug="spectral_mlp",
    title="A multilayer perceptron on the spectra of single pixels",
    kind="model",
    summary="Linear layers with GELU and dropout on every pixel's spectrum; nothing is learned "
    "about its surroundings.",
    when="First network to try where the area to be mapped lies away from the labelled fields: "
    "with patches of 1 x 1 pixels (patch_size 1), noise-sorted components (reduction mnf) and "
    "refined probabilities it cannot mistake the shape of a field for its material. Next to "
    "training pixels, networks with wide patches are better.",
    paper="Benediktsson, Swain and Ersoy, IEEE TGRS 28(4), 540-552",
    year=1990,
    source_licence="none: no code was published",
    tasks=["classify"],
    variants={
        "spectral_mlp": {"width": 256, "depth": 2},
        "spectral_mlp_test": {"width": 16, "depth": 2},
    },
    published=[
        {
            "variant": "spectral_mlp",
            "parameters": 326_888,
            "source": "weights (15 + 256 + 1000) x 256 and biases 256 + 256 + 1000, by hand",
            "bands": 15,
            "image_size": 15,
        },
    ],
    recipe={"dropout": 0.2, "patch_size": 1},
    notes=[
        "Usage: Of images wider than a pixel the features of all pixels are averaged before they "
        "are classified, so that patches of 3 x 3 are smoothed spectra in the space of features.",
        "Usage: In mode dense every hidden layer is a map of stride 1.",
        "Differs from the reference: two hidden layers with GELU, dropout and AdamW; the paper has "
        "sigmoid units and plain gradient descent.",
    ],
)


class SpectralMLP(Backbone):
    """Linear layers on the bands of each pixel, and a linear classifier on the mean of its pixels' features.

    Args:
        bands: channels of the input.
        num_classes: classes.
        image_size: side of the image in pixels, or height and width; any other is accepted too.
        width: of the hidden layers.
        depth: hidden layers.
        dropout: share of hidden values that are left out in training.
    """

    any_size = True
    band_parameters = ("layers.0.0.weight",)

    def __init__(
        self,
        bands: int,
        num_classes: int,
        image_size: ImageSize = 1,
        *,
        width: Size = 256,
        depth: Size = 2,
        dropout: Share = 0.2,
    ) -> None:
        super().__init__(bands, num_classes, image_size)
        self.num_features = width
        self.feature_info = [FeatureInfo(width, 1)] * depth
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(bands if k == 0 else width, width), nn.GELU(), nn.Dropout(dropout)
            )
            for k in range(depth)
        )
        self.head = self.make_head(num_classes)

    def level_maps(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> list[Float[Tensor, "batch dim height width"]]:
        """Return the map of every hidden layer."""
        levels, spectra = [], x.permute(0, 2, 3, 1)
        for layer in self.layers:
            spectra = self.run(layer, spectra)
            levels.append(spectra.permute(0, 3, 1, 2))
        return levels

    def forward_features(
        self, x: Float[Tensor, "batch bands height width"]
    ) -> Float[Tensor, "batch dim height width"]:
        """Return the last hidden layer's map."""
        return self.level_maps(x)[-1]

    def forward_head(
        self, features: Float[Tensor, "batch dim height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Classify the mean over all pixels."""
        return self.head(features.mean((2, 3)))


build = SpectralMLP
