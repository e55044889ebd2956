"""What files say about a scene classifier, checked before anything is built from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vitreous.inference.dense_classifier import LARGEST_TILE, OVERLAP
from vitreous.inference.restore import LARGEST_TILE as LARGEST_RESTORED
from vitreous.recipe import SpectraKind

MOST_CLASSES = 65535  # of a label image
LARGEST_PATCH = 513
WIDEST = 4096  # decoder
LARGEST_SCALE = 64
LARGEST_IMAGE = 2**14  # side in pixels
MOST_BANDS = 65536
MOST_MEMBERS = 16  # of an ensemble

Color: TypeAlias = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]
Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=1000)]
Padding: TypeAlias = Literal["reflect", "zero"]
PatchSize: TypeAlias = Annotated[int, Field(ge=1, le=LARGEST_PATCH)]
ImageSides: TypeAlias = Annotated[  # height and width
    list[Annotated[int, Field(ge=1, le=LARGEST_IMAGE)]], Field(min_length=2, max_length=2)
]


class Description(BaseModel):
    """Part of a description; what is not known of it is left alone, so that later versions may say more."""

    model_config = ConfigDict(
        strict=True, allow_inf_nan=False, extra="ignore", frozen=True, protected_namespaces=()
    )


class MethodEntry(Description):
    """A method that was applied to a network."""

    name: Name
    settings: dict[str, Any]


class Classes(Description):
    """The classes that a product shows."""

    name: Name
    class_names: list[str] = Field(min_length=1, max_length=MOST_CLASSES)
    class_colors: list[Color]
    class_codes: list[Annotated[int, Field(ge=-(2**31), lt=2**31)]] = []  # older files: 1, 2, ...

    @model_validator(mode="after")
    def _one_color_each(self) -> Self:
        count = len(self.class_names)
        if count != len(self.class_colors):
            raise ValueError(f"{count} classes have {len(self.class_colors)} colours")
        if self.class_codes and not len(self.class_codes) == len(set(self.class_codes)) == count:
            raise ValueError(f"{count} classes have {len(set(self.class_codes))} codes")
        return self


class SceneProduct(Classes):
    """What labels scenes: its classes, and what becomes of its probabilities (see ``inference/postprocess.py``)."""

    postprocess: dict[str, Any] | None = None  # older files have none


class PatchSettings(Description):
    """Settings of a classifier of patches; they become its arguments, so there are no others."""

    model_config = ConfigDict(extra="forbid")

    mode: Literal["patch", "scene"]
    patch_size: PatchSize
    patch_norm: bool = False
    padding: Padding = "reflect"


class DenseSettings(Description):
    """Settings of a classifier of tiles."""

    model_config = ConfigDict(extra="forbid")

    mode: Literal["dense"]
    patch_size: PatchSize
    tile_size: int = Field(ge=OVERLAP, le=LARGEST_TILE)
    padding: Padding = "reflect"
    decoder: Name
    width: int = Field(ge=1, le=WIDEST)


class ExportedPatchSettings(PatchSettings):
    """Those, and how much context the exported graphs need on each side."""

    margin: int = Field(ge=0, le=LARGEST_PATCH)

    @model_validator(mode="after")
    def _patch_within(self) -> Self:
        if self.margin < self.patch_size // 2:
            raise ValueError(
                f"margin {self.margin} does not hold a patch of {self.patch_size} pixels"
            )
        return self


class Quantization(Description):
    """Quantized layers of an export: in integers, or simulated."""

    integer: list[str]
    simulated: list[str]


class FileEntry(Description):
    """A file of an export."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ExportDescription(Description):
    """``export.json`` of whatever was exported."""

    name: Name
    format: Literal["onnx", "openvino", "torch"]
    kind: str
    contract: dict[str, Any]
    methods: list[MethodEntry] = []
    quantization: Quantization
    source: str
    files: dict[str, FileEntry]


class ClassifierExport(ExportDescription, SceneProduct):
    """``export.json`` of a classifier."""

    kind: Literal["patches", "pixels", "tiles"]
    settings: Annotated[ExportedPatchSettings | DenseSettings, Field(discriminator="mode")]

    @model_validator(mode="after")
    def _graphs_of_the_mode(self) -> Self:
        if (self.settings.mode == "dense") != (self.kind == "tiles"):
            raise ValueError(f"graphs of {self.kind} do not belong to mode '{self.settings.mode}'")
        return self


class NetworkHeader(SceneProduct):
    """The header of a trained network's file."""

    kind: Literal["model"]
    contract: dict[str, Any]
    bands: int = Field(ge=1, le=MOST_BANDS)
    spectra: SpectraKind = "none"  # older files changed none
    num_classes: int
    model_args: dict[str, Any]
    methods: list[MethodEntry]
    settings: Annotated[PatchSettings | DenseSettings, Field(discriminator="mode")]

    @model_validator(mode="after")
    def _a_name_each(self) -> Self:
        if self.num_classes != len(self.class_names):
            raise ValueError(
                f"a network of {self.num_classes} classes has {len(self.class_names)} names of them"
            )
        return self


class EstimatorHeader(SceneProduct):
    """The header of a trained classical estimator's file."""

    kind: Literal["estimator"]
    contract: dict[str, Any]
    estimator: dict[str, Any]


class EnsembleHeader(Classes):
    """The header of the file of several trained systems; each member's own header lacks what all share."""

    kind: Literal["ensemble"]
    contract: dict[str, Any]
    members: list[dict[str, Any]] = Field(min_length=1, max_length=MOST_MEMBERS)


class RecognizerHeader(Description):
    """The header of the file of a network that classifies whole images."""

    kind: Literal["recognizer"]
    name: Name
    contract: dict[str, Any]
    model_args: dict[str, Any]
    methods: list[MethodEntry]
    class_names: list[str] = Field(min_length=1, max_length=MOST_CLASSES)
    several: bool
    size: ImageSides
    channels: int = Field(ge=1, le=MOST_BANDS)


class RestorerSettings(Description):
    """Settings of a restorer; they become its arguments, so there are no others."""

    model_config = ConfigDict(extra="forbid")

    tile_size: int
    per: str


class ExportedRestorerSettings(Description):
    """What tiles an exported restorer takes, and how many times finer it makes them."""

    tile_size: int = Field(ge=OVERLAP, le=LARGEST_RESTORED)
    scale: int = Field(ge=1, le=LARGEST_SCALE)


class RestorerExport(ExportDescription):
    """``export.json`` of a restorer."""

    kind: Literal["cubes"]
    settings: ExportedRestorerSettings


class ExportedRecognizerSettings(Description):
    """What images an exported recognizer takes, how they are opened, and what becomes of invalid pixels."""

    size: ImageSides
    several: bool
    fill: list[float] = Field(min_length=1, max_length=MOST_BANDS)
    hints: dict[str, Any] = {}

    @model_validator(mode="after")
    def _no_files(self) -> Self:
        if "mask" in self.hints:
            raise ValueError("the hints of an export name no mask")
        return self


class RecognizerExport(ExportDescription):
    """``export.json`` of a network that classifies whole images."""

    kind: Literal["images"]
    class_names: list[str] = Field(min_length=1, max_length=MOST_CLASSES)
    settings: ExportedRecognizerSettings


class RestorerHeader(Description):
    """The header of a trained restorer's file."""

    name: Name
    contract: dict[str, Any]
    model_args: dict[str, Any]
    methods: list[MethodEntry] = []  # older files have none
    settings: RestorerSettings
