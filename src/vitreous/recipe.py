"""Every setting of a training run, in one place: one recipe per task.

The command line's flags, the keys of a YAML recipe and the arguments in Python are generated from these models,
so their names are the same everywhere and an unknown one is refused with the nearest known.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, TypeVar, overload

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from vitreous.errors import ConfigError, did_you_mean
from vitreous.files import read_yaml

RECIPE_LIMIT = 2**20
MANY = 1_000_000  # rounds of anything: more is a slip of the keyboard
MOST_STEPS = 100_000_000
MOST_SEED = 2**32 - 1  # what all random generators take
MOST_BANDS = 65536
LARGEST_ARGUMENT = 1e9  # of a system, a method or a degradation
LONGEST_NAME = 100  # characters; file systems take 255, and numbers and suffixes follow


# What settings are about, in the order in which they are shown.
PANELS = (
    "Data",
    "Split",
    "Model",
    "Preprocessing",
    "Degradation",
    "Augmentation",
    "Training",
    "Refinement",
    "Run",
)


def setting(default: Any, panel: str, description: str, **limits: Any) -> Any:
    """Return a field of a recipe.

    Args:
        default: of the setting.
        panel: one of ``PANELS``, under which it is shown.
        description: what it does, for ``--help`` and the documentation.
        limits: of its values, as pydantic's ``Field`` takes them (``ge=1``).
    """
    return Field(default, description=description, json_schema_extra={"panel": panel}, **limits)


# Of METHOD, a method that adapts: it is looked up where it is needed.
_THEN = "pretrain_then_"
_ADAPT = re.compile(rf"scratch|\w+_only|{_THEN}\w+")

_SIZE = r"^\d{1,4}(x\d{1,4})?$"  # of images

# What is done to each spectrum (vitreous.layers.spectra).
SpectraKind: TypeAlias = Literal["none", "snv", "continuum", "derivative", "brightness"]
SPECTRA_WORDS = (
    "What is done to each spectrum first: mean 0 and deviation 1 (snv), division by its upper hull (continuum), its slope "
    "(derivative), or length 1 (brightness)."
)
PATCH_SIZES = {
    "spectral_mlp": 1
}  # of systems that read single spectra, unless others are asked for
AUTO = "auto"  # the system that is chosen by a comparison
_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*(s|m|h)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_BRIGHTNESS_GONE = ("snv", "continuum", "brightness")

# Only of what is trained here, not of its baselines.
_OF_THE_RUN = ("init", "devices", "accelerator", "precision", "tensorboard")

_OF_THE_REDUCTION = ("standardize", "components", "whiten")

# Methods that a network is trained with.
_OF_THE_NETWORK = (
    *("adapt", "adapt_args", "reduce", "reduce_args"),
    *("teacher", "distill", "distill_args", "teacher_store", "teacher_top"),
)

R = TypeVar("R", bound="Settings")


class Settings(BaseModel):
    """What every recipe has, whatever is trained."""

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        str_max_length=4096,
        defer_build=True,  # 'vitreous --help' validates nothing
    )

    hints: dict[str, Any] = setting({}, "Data", "Reader options, e.g. variable=cube.")

    model: str
    model_args: dict[str, Any] = setting({}, "Model", "Overrides for the variant, e.g. dim=48.")
    init: str | None = setting(
        None, "Model", "Run folder or model file (.safetensors) to initialise the weights from."
    )

    learning_rate: float
    weight_decay: float = setting(0.05, "Training", "AdamW weight decay.", ge=0, le=1000)
    clip: float = setting(1.0, "Training", "Gradient clipping (maximum norm).", gt=0, le=1e12)
    ema: float = setting(
        0.98, "Training", "EMA decay of the weights used for evaluation.", ge=0, lt=1
    )
    seed: int = setting(0, "Training", "Random seed.", ge=0, le=MOST_SEED)
    devices: int = setting(1, "Training", "Number of processes (DDP).", ge=1, le=1024)
    accelerator: Literal["auto", "cpu", "gpu"] = setting("auto", "Training", "Device to train on.")
    precision: Literal["32", "bf16"] = setting("32", "Training", "Numeric precision of training.")

    name: str | None = setting(None, "Run", "Name of the run (default: automatic).")
    runs: str = setting("runs", "Run", "Folder that runs are written to.")
    report: bool = setting(True, "Run", "Write report.html.")
    tensorboard: bool = setting(False, "Run", "Also log for TensorBoard.")

    @field_validator("*")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what no file is named and no argument can be."""
        if isinstance(value, str) and "\0" in value:
            raise ValueError("it must not contain a NUL character")
        if info.field_name in {
            "hints",
            "label_hints",
        }:  # words, because JSON has no such numbers; readers know them
            return {
                key: str(part) if isinstance(part, float) and not math.isfinite(part) else part
                for key, part in value.items()
            }
        if isinstance(value, dict) and info.field_name != "degradation_args":
            for key, part in value.items():
                for number in part if isinstance(part, list | tuple) else [part]:
                    if isinstance(number, int | float) and not abs(number) <= LARGEST_ARGUMENT:
                        raise ValueError(f"{key}={number} is out of range")
        return value

    @field_validator("name")
    @classmethod
    def _one_folder(cls, name: str | None) -> str | None:
        """Refuse a name that is not that of a single, visible folder."""
        if name is None:
            return None
        if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
            raise ValueError(f"a name has 1 to {LONGEST_NAME} printable characters")
        if name.startswith(".") or set(name) & set("/\\"):
            raise ValueError(
                f"'{name}' is not a plain folder name; set the parent folder with --runs"
            )
        return name

    def without_effect(self, *, trained: bool, networks: bool) -> dict[str, str]:
        """Return the settings that differ from their defaults and change nothing, each with the reason.

        Args:
            trained: whether the system itself is trained by gradient descent.
            networks: whether it or any of its baselines is.
        """
        rules = self._rules(trained, networks)
        differ = {
            name
            for name, field in type(self).model_fields.items()
            if getattr(self, name) != field.get_default(call_default_factory=True)
        }
        return {
            name: reason for reason, names in rules.items() for name in sorted(differ & set(names))
        }

    def _rules(self, trained: bool, networks: bool) -> dict[str, tuple[str, ...]]:
        """Return, by the reason, settings that change nothing."""
        return (
            {} if trained else {f"'{self.model}' is not trained by gradient descent": _OF_THE_RUN}
        )

    @classmethod
    def panel(cls, name: str, *others: str) -> tuple[str, ...]:
        """Return the settings of a panel, without some others."""
        return tuple(
            key
            for key, field in cls.model_fields.items()
            if key not in others and field.json_schema_extra == {"panel": name}
        )

    @classmethod
    def fields(cls) -> dict[str, FieldInfo]:
        """Return the settings by name, those of a panel together."""

        def place(item: tuple[str, FieldInfo]) -> int:
            extra = item[1].json_schema_extra
            assert isinstance(extra, dict)
            return PANELS.index(str(extra["panel"]))

        return dict(sorted(cls.model_fields.items(), key=place))


class TaughtSettings(Settings):
    """What the recipes of all tasks have that can learn from a teacher."""

    teacher: str | None = setting(
        None, "Model", "Run folder of a trained network to learn from (needs --distill)."
    )
    distill: str | None = setting(
        None,
        "Model",
        "Distillation method to learn from the --teacher with, e.g. deit_hard (see 'vitreous methods').",
    )
    distill_args: dict[str, Any] = setting(
        {}, "Model", "Settings of the --distill method, e.g. weight=0.3."
    )

    @model_validator(mode="after")
    def _taught(self) -> Self:
        if (self.teacher is None) != (self.distill is None):
            raise ValueError("teacher and distill must be given together")
        if self.distill_args and self.distill is None:
            raise ValueError("distill_args needs a method: set distill")
        return self


class SceneSettings(Settings):
    """What the recipes of all tasks on a scene have."""

    scene: str = setting("indian_pines", "Data", "Scene file, or the name of a built-in sample.")
    scenes: str | None = setting(
        None,
        "Data",
        "A collection instead of one scene: a folder, a pattern (in quotes), or a table (CSV, GeoParquet, GeoPackage, "
        "STAC items) with the columns scene, labels, role, date, sensor.",
    )
    mask: str | None = setting(
        None,
        "Data",
        "Mask of pixels to exclude, e.g. clouds: a file, or the product's own 'scl' or 'qa' layer.",
    )
    untrusted: bool = setting(
        False, "Data", "Read files in a separate process with limits on memory and time."
    )
    flips: bool = setting(True, "Training", "Augment with random flips and 90-degree rotations.")

    @model_validator(mode="before")
    @classmethod
    def _one_source(cls, values: Any) -> Any:
        """Refuse a scene beside a collection."""
        if isinstance(values, dict) and values.get("scenes") is not None:
            default = cls.model_fields["scene"].default
            if values.get("scene", default) != default:
                raise ValueError("give either scene or scenes, not both")
            if "split" in cls.model_fields:
                values = {"split": "scenes", **values}
        return values

    @property
    def source(self) -> str:
        """The scene or the collection."""
        return self.scene if self.scenes is None else self.scenes

    @property
    def scene_hints(self) -> dict[str, Any]:
        """All that the reader of the scene is told."""
        return self.hints if self.mask is None else {**self.hints, "mask": self.mask}


def seconds_of(time: str) -> float | None:
    """Return the seconds of a time such as ``90s``, ``10m`` or ``1.5h``; None where it is none, or no time at all."""
    found = _TIME.fullmatch(time.strip())
    if found is None:
        return None
    return float(found[1]) * _SECONDS[found[2]] or None


class Recipe(SceneSettings, TaughtSettings):
    """The settings of ``vitreous train``, checked and complete."""

    labels: str | None = setting(
        None,
        "Data",
        "Label image or vector file (built-in samples have their own); of a collection their folder or pattern.",
    )
    test_labels: str | None = setting(None, "Data", "Separate test labels; implies --split files.")
    label_attribute: str | None = setting(
        None, "Data", "Attribute that holds the class of vector labels."
    )
    label_hints: dict[str, Any] = setting(
        {}, "Data", "Reader options for the labels, e.g. layer=fields, variable=gt, nodata=255."
    )
    classes: str | None = setting(
        None,
        "Data",
        "Names and colours of the classes of a label image: a CSV, JSON or QML file, or a known scheme, e.g. worldcover.",
    )

    split: Literal["blocks", "random", "fixed", "files", "scenes"] = setting(
        "blocks",
        "Split",
        "How to split labelled pixels; only 'blocks' keeps training and test patches from overlapping. 'scenes', the "
        "default of collections, trains and tests on different scenes.",
    )
    train_fraction: float = setting(
        0.3, "Split", "Fraction of labelled pixels used for training.", gt=0, lt=1
    )
    train_per_class: int | None = setting(
        None, "Split", "Training pixels per class (random split).", ge=1, le=10**9
    )
    val_fraction: float = setting(
        0.1,
        "Split",
        "Fraction held out to choose the best epoch: of the training pixels (of all pixels with 'blocks'); 0: keep "
        "the last epoch.",
        ge=0,
        lt=1,
    )
    block_size: int | None = setting(
        None, "Split", "Block size in pixels (default: automatic).", ge=2, le=100_000
    )

    model: str = setting(
        AUTO,
        "Model",
        "Name of the system (see 'vitreous systems'); auto compares candidates by cross-validation on the training "
        "pixels and trains the best.",
    )
    candidates: list[str] = setting(
        [], "Model", "Candidates that 'auto' compares (default: all that the budget allows)."
    )
    budget: str = setting(
        "10m", "Model", "Time that 'auto' may take to compare and train, e.g. 90s, 10m, 1.5h."
    )
    patch_size: int = setting(
        15,
        "Model",
        "Side of the square patch around each pixel, in pixels (spectral_mlp: 1).",
        ge=1,
        le=129,
    )
    mode: Literal["scene", "patch", "dense"] = setting(
        "scene",
        "Model",
        "Compute the front-end once per region (scene) or once per patch (patch, as published), or label all pixels "
        "of a tile at once (dense).",
    )
    tile_size: int = setting(64, "Model", "Tile size in pixels (mode 'dense').", ge=16, le=512)
    decoder: Literal["fpn", "upernet"] = setting(
        "fpn", "Model", "Segmentation decoder: feature pyramid (FPN) or UPerNet (mode 'dense')."
    )
    teacher_store: str | None = setting(
        None,
        "Model",
        "Folder that the teacher's answers are kept in: students that see the same pixels do not ask again.",
    )
    teacher_top: int = setting(
        16, "Model", "Most classes per answer that are kept in it.", ge=1, le=65535
    )
    adapt: str = setting(
        "scratch",
        "Model",
        "What to train: all parameters (scratch), the head (head_only), adapters and head (METHOD_only), or all "
        "parameters first and then adapters (pretrain_then_METHOD); see 'vitreous methods'.",
    )
    adapt_args: dict[str, Any] = setting(
        {}, "Model", "Settings of the --adapt method, e.g. bottleneck=8."
    )
    reduce: str | None = setting(
        None, "Model", "Token reduction to train with, e.g. evit (see 'vitreous methods')."
    )
    reduce_args: dict[str, Any] = setting(
        {}, "Model", "Settings of the --reduce method, e.g. keep_rate=0.5."
    )

    spectra: SpectraKind = setting("none", "Preprocessing", SPECTRA_WORDS)
    reduction: Literal["auto", "pca", "mnf", "none"] = setting(
        "auto",
        "Preprocessing",
        "Spectral dimensionality reduction: principal components (pca) or minimum noise fraction (mnf); auto: none for "
        "classical classifiers and for networks that read the bands themselves, else pca.",
    )
    standardize: bool = setting(
        True, "Preprocessing", "Standardize the bands (z-score) before the reduction."
    )
    components: int = setting(15, "Preprocessing", "Number of components.", ge=1, le=MOST_BANDS)
    whiten: bool = setting(False, "Preprocessing", "Scale components to unit variance.")
    patch_norm: bool = setting(
        False, "Preprocessing", "Standardize within each patch, as published (mode 'patch' only)."
    )
    padding: Literal["reflect", "zero"] = setting(
        "reflect", "Preprocessing", "Padding beyond the edge of the scene."
    )

    epochs: int | None = setting(
        None, "Training", "Training epochs (default: about 1000 steps).", ge=1, le=MANY
    )
    passes: int = setting(
        2,
        "Training",
        "Passes over the training pixels per epoch (a shared front-end runs once for all of them).",
        ge=1,
        le=MANY,
    )
    batch_size: int = setting(
        64,
        "Training",
        "Training pixels per step (in mode 'dense', from a few tiles).",
        ge=1,
        le=MANY,
    )
    learning_rate: float = setting(3e-3, "Training", "Peak learning rate.", gt=0, le=1000)
    base_rate_factor: float = setting(
        1.0,
        "Training",
        "Learning-rate multiplier for non-adapter parameters.",
        gt=0,
        le=1e6,
    )
    schedule: Literal["cosine", "cyclic", "constant"] = setting(
        "cosine", "Training", "Learning-rate schedule; 'cyclic' also modulates the LoRA scale."
    )
    cycle_epochs: int = setting(
        10, "Training", "Length of the first cycle in epochs.", ge=1, le=MANY
    )
    cycle_growth: int = setting(2, "Training", "Growth factor of the cycle length.", ge=1, le=1000)
    warmup_epochs: int = setting(3, "Training", "Epochs of linear warm-up.", ge=0, le=MANY)
    label_smoothing: float = setting(0.1, "Training", "Cross-entropy label smoothing.", ge=0, lt=1)
    class_weights: Literal["none", "balanced", "sqrt"] = setting(
        "sqrt", "Training", "Class weighting of the loss."
    )
    gain: float = setting(
        0.0, "Training", "Random brightness scaling of whole regions (relative).", ge=0, lt=1
    )
    offset: float = setting(
        0.0,
        "Training",
        "Random light added to all bands of whole regions (relative to the mean brightness), like haze.",
        ge=0,
        lt=1,
    )
    background: float = setting(
        0.0,
        "Training",
        "Largest share of a random unlabelled pixel of the scene that is mixed into whole regions.",
        ge=0,
        lt=1,
    )
    band_dropout: float = setting(
        0.0,
        "Training",
        "Largest share of the bands, next to one another, that are replaced by their mean in whole regions.",
        ge=0,
        lt=1,
    )
    noise: float = setting(
        0.05,
        "Training",
        "Standard deviation of Gaussian noise added to the input channels.",
        ge=0,
        le=1000,
    )
    mixup: float = setting(
        0.3,
        "Training",
        "MixUp alpha; 0: off (unused in mode 'dense').",
        ge=0,
        le=1000,
    )
    patience: int = setting(
        0,
        "Training",
        "Early stopping: epochs without improvement on the validation pixels; 0: train to the end, then keep the "
        "best epoch.",
        ge=0,
        le=MANY,
    )
    refit: bool = setting(
        False,
        "Training",
        "Retrain on training and validation pixels for the best number of epochs (doubles the time).",
    )

    refine: Literal["none", "auto", "domain_transform", "guided", "potts"] = setting(
        "none",
        "Refinement",
        "Smooth the class probabilities within the edges of the scene; auto: where the validation pixels say so, or, for "
        "classical classifiers, folds of the training pixels. Uses no labels; its reach widens the buffer of the split.",
    )
    refine_args: dict[str, Any] = setting(
        {}, "Refinement", "Settings of the refinement, e.g. spatial=5."
    )

    baselines: list[str] = setting(
        ["svm", "svm_spatial", "random_forest"],
        "Run",
        "Baselines trained and tested on the same split.",
    )
    map: bool = setting(True, "Run", "Write the map of the whole scene.")
    probabilities: bool = setting(False, "Run", "Also write class probabilities.")

    @model_validator(mode="before")
    @classmethod
    def _refined_by_comparison(cls, values: Any) -> Any:
        """Let a comparison also decide about refinement, where nobody has."""
        if isinstance(values, dict) and values.get("model", AUTO) == AUTO:
            return {"refine": "auto", **values}
        return values

    @model_validator(mode="before")
    @classmethod
    def _own_patch(cls, values: Any) -> Any:
        """Give a system that reads single spectra patches of a pixel, where nobody has said otherwise."""
        if isinstance(values, dict) and isinstance(name := values.get("model"), str):
            for slug, size in PATCH_SIZES.items():
                if name.startswith(slug):
                    values = {"patch_size": size, **values}
        return values

    @field_validator("budget")
    @classmethod
    def _time(cls, budget: str) -> str:
        if seconds_of(budget) is None:
            raise ValueError(f"'{budget}' is not a time such as 90s, 10m or 1.5h")
        return budget

    @field_validator("adapt")
    @classmethod
    def _known_form(cls, adapt: str) -> str:
        if not _ADAPT.fullmatch(adapt):
            raise ValueError(
                f"'{adapt}' is not scratch, head_only, METHOD_only or pretrain_then_METHOD"
            )
        return adapt

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.patch_size % 2 == 0:
            raise ValueError("patch_size must be odd, because a patch is centred on a pixel")
        if self.patch_norm and self.mode != "patch":
            raise ValueError(
                f"patch_norm needs mode 'patch': {self.mode} mode has no patches before the front-end"
            )
        if self.mode == "dense" and self.tile_size < self.patch_size:
            raise ValueError("tile_size must not be smaller than patch_size")
        if self.scenes is None and self.split == "scenes":
            raise ValueError("split 'scenes' needs a collection: set scenes")
        if self.scenes is not None and self.split in {"fixed", "files"}:
            raise ValueError(
                f"split '{self.split}' divides a single scene; for a collection use 'scenes', with roles in its table"
            )
        if (self.test_labels is not None) != (self.split == "files"):
            raise ValueError("split 'files' and test_labels must be given together")
        if self.refit and self.val_fraction == 0:
            raise ValueError("refit needs validation pixels, but val_fraction is 0")
        if self.refit and self.devices > 1:
            raise ValueError("refit is not supported with several devices")
        if self.adapt_args and self.adapt_method is None:
            raise ValueError(f"adapt_args has no effect: adapt '{self.adapt}' uses no method")
        if self.reduce_args and self.reduce is None:
            raise ValueError("reduce_args needs a method: set reduce")
        if self.refine_args and self.refine == "none":
            raise ValueError("refine_args needs a refinement: set refine")
        if self.teacher_store is not None and self.teacher is None:
            raise ValueError("teacher_store needs a teacher: set teacher")
        return self

    def _rules(self, trained: bool, networks: bool) -> dict[str, tuple[str, ...]]:
        rules = super()._rules(trained, networks)
        if not trained:
            rules = {reason: (*names, *_OF_THE_NETWORK) for reason, names in rules.items()}
        if not networks:
            for_networks = (
                *self.panel("Model", "model", "model_args", "candidates", "budget"),
                *("patch_norm", "padding"),
                *self.panel("Training", "seed"),
            )
            own = {"no network is trained": (*for_networks, "tensorboard")}
            if self.reduction in {"auto", "none"} and not self.chosen:
                own["nothing is reduced"] = _OF_THE_REDUCTION
            if self.reduction == "mnf":
                own["reduction is 'mnf'"] = ("standardize",)
            return own | self._split_rules()
        dense = self.mode == "dense"
        rules["mode is 'dense'" if dense else "mode is not 'dense'"] = (
            ("mixup",) if dense else ("tile_size", "decoder")
        )
        if self.reduction == "none":
            rules["reduction is 'none'"] = _OF_THE_REDUCTION
        elif self.reduction == "mnf":
            rules["reduction is 'mnf'"] = ("standardize",)
        if self.spectra in _BRIGHTNESS_GONE:
            rules[f"spectra is '{self.spectra}'"] = ("gain", "offset")
        elif self.spectra != "none":
            rules[f"spectra is '{self.spectra}'"] = ("offset",)
        if self.schedule != "cyclic":
            rules["schedule is not 'cyclic'"] = ("cycle_epochs", "cycle_growth")
        return rules | self._split_rules()

    @property
    def chosen(self) -> bool:
        """Whether a comparison chooses the system."""
        return self.model == AUTO

    @property
    def seconds(self) -> float:
        """What a comparison may take."""
        return seconds_of(self.budget) or 0.0

    def _split_rules(self) -> dict[str, tuple[str, ...]]:
        rules: dict[str, tuple[str, ...]] = {}
        if not self.chosen:
            rules[f"model is not '{AUTO}'"] = ("candidates", "budget")
        else:
            rules[f"model is '{AUTO}', which withholds no validation pixels"] = (
                "val_fraction",
                "patience",
                "refit",
            )
        if self.split != "blocks":
            rules["split is not 'blocks'"] = ("block_size",)
        if self.split not in {"random", "scenes"}:
            rules["split is not 'random'"] = ("train_per_class",)
        if self.split in {"fixed", "files"}:
            rules[f"split is '{self.split}'"] = ("train_fraction",)
        elif self.split == "random" and self.train_per_class is not None:
            rules["train_per_class is given"] = ("train_fraction",)
        if not self.map:
            rules["no map is written"] = ("probabilities",)
        if self.labels is None and self.scenes is None:
            rules["no label file is given"] = ("label_attribute",)
        return rules

    @property
    def adapt_method(self) -> str | None:
        """The method whose adapters are trained, None where there are none."""
        if self.adapt in {"scratch", "head_only"}:
            return None
        if self.adapts_later:
            return self.adapt.removeprefix(_THEN)
        return self.adapt.removesuffix("_only")

    @property
    def adapts_later(self) -> bool:
        """Whether adapters are trained alone in the second half of the training."""
        return self.adapt.startswith(_THEN)


class RestoreRecipe(SceneSettings):
    """The settings of ``vitreous restore``: a network learns to undo what a degradation does to a scene."""

    test_fraction: float = setting(
        0.2,
        "Split",
        "Fraction held out for testing, at the end of the scene's longer side.",
        gt=0,
        lt=1,
    )
    val_fraction: float = setting(
        0.1,
        "Split",
        "Fraction held out for validation, just before the test area; 0: none.",
        ge=0,
        lt=1,
    )

    model: str = setting("hsdt_small", "Model", "Name of the restorer (see 'vitreous systems').")

    range: Literal["band", "scene"] = setting(
        "band",
        "Preprocessing",
        "Scale to 0..1 per band or over the whole scene.",
    )

    degradation: str | None = setting(
        None,
        "Degradation",
        "Degradation to remove (default: gaussian, or downsample by the model's scale).",
    )
    degradation_args: dict[str, Any] = setting(
        {}, "Degradation", "Settings of the degradation, e.g. sigma=30 (of 255)."
    )

    steps: int = setting(1000, "Training", "Training steps.", ge=1, le=MOST_STEPS)
    crop: int = setting(
        32,
        "Training",
        "Size of the degraded crops in pixels; clean crops are 'scale' times larger.",
        ge=4,
        le=1024,
    )
    batch_size: int = setting(8, "Training", "Crops per step.", ge=1, le=MANY)
    train_bands: int = setting(
        31,
        "Training",
        "Adjacent bands per step, for networks that accept any number of bands.",
        ge=1,
        le=MOST_BANDS,
    )
    learning_rate: float = setting(3e-3, "Training", "Peak learning rate.", gt=0, le=1000)
    weight_decay: float = setting(0.0, "Training", "AdamW weight decay.", ge=0, le=1000)
    loss: Literal["l1", "mse"] = setting(
        "l1", "Training", "Mean absolute (l1) or mean squared error (mse)."
    )

    baselines: list[str] | None = setting(
        None,
        "Run",
        "Classical filters to compare with (default: all that apply to the degradation).",
    )
    product: bool = setting(True, "Run", "Also restore the scene itself (restored.tif).")

    def _rules(self, trained: bool, networks: bool) -> dict[str, tuple[str, ...]]:
        rules = super()._rules(trained, networks)
        return {
            reason: (*names, *self.panel("Training", "seed", "crop"))
            for reason, names in rules.items()
        }

    @model_validator(mode="after")
    def _consistent(self) -> RestoreRecipe:
        if self.test_fraction + self.val_fraction >= 0.9:
            raise ValueError("test_fraction and val_fraction leave nothing to train on")
        if self.degradation_args and self.degradation is None:
            raise ValueError("degradation_args needs a degradation: set degradation")
        return self


class PretrainRecipe(SceneSettings):
    """The settings of ``vitreous pretrain``: a network learns from a scene without labels."""

    val_fraction: float = setting(
        0.1,
        "Split",
        "Fraction held out for validation, at the end of the scene's longer side; 0: none.",
        ge=0,
        lt=0.9,
    )

    model: str = setting("satmae_pp_tiny", "Model", "Name of the network (see 'vitreous systems').")
    image_size: int = setting(
        16, "Model", "Image size in pixels (fine-tuning may use another).", ge=4, le=1024
    )
    pretrainer_args: dict[str, Any] = setting(
        {}, "Model", "Pre-training settings, e.g. mask_ratio=0.6."
    )

    spectra: SpectraKind = setting("none", "Preprocessing", SPECTRA_WORDS)
    reduction: Literal["pca", "none"] = setting(
        "none", "Preprocessing", "Spectral dimensionality reduction; none: standardize each band."
    )
    components: int = setting(
        15, "Preprocessing", "Number of principal components.", ge=1, le=MOST_BANDS
    )

    steps: int = setting(1000, "Training", "Training steps.", ge=1, le=MOST_STEPS)
    batch_size: int = setting(32, "Training", "Crops per step.", ge=1, le=MANY)
    learning_rate: float = setting(1e-3, "Training", "Peak learning rate.", gt=0, le=1000)

    def _rules(self, trained: bool, networks: bool) -> dict[str, tuple[str, ...]]:
        rules = super()._rules(trained, networks)
        return rules if self.reduction == "pca" else {"reduction is 'none'": ("components",)}


class RecognizeRecipe(TaughtSettings):
    """The settings of ``vitreous recognize``: a network learns the class, or the classes, of whole images."""

    images: str = setting(
        "",
        "Data",
        "Folder of images, <class>/* or train|val|test/<class>/*, or a table (CSV, Parquet) with the columns image, "
        "label or labels, and role.",
    )
    root: str | None = setting(
        None, "Data", "Folder that the paths in a table are relative to (default: the table's own)."
    )

    val_fraction: float = setting(
        0.1,
        "Split",
        "Fraction of the training images held out to choose the best epoch, where none are given for it; 0: keep the "
        "last epoch.",
        ge=0,
        lt=1,
    )
    test_fraction: float = setting(
        0.2, "Split", "Fraction held out for testing, where no images are given for it.", gt=0, lt=1
    )
    split_seed: int = setting(
        0,
        "Split",
        "Random seed of the split, the same for runs that are compared.",
        ge=0,
        le=MOST_SEED,
    )

    model: str = setting(
        "efficientvit_m0", "Model", "Name of the network (see 'vitreous systems')."
    )
    image_size: str | None = setting(
        None,
        "Model",
        "Size that images are resized and cropped to, in pixels: 64, or 48x64 for height x width (default: that of the "
        "images, at most 224).",
        pattern=_SIZE,
    )

    crop: float = setting(
        0.5,
        "Augmentation",
        "Least share of an image in a random crop; 1: the whole image.",
        gt=0,
        le=1,
    )
    flip: Literal["horizontal", "all", "none"] = setting(
        "horizontal",
        "Augmentation",
        "Random mirroring; 'all' also turns images by 90 degrees, for views from above.",
    )
    operations: int = setting(
        1,
        "Augmentation",
        "RandAugment: random operations per image, on colours of RGB pictures, per band of all others; 0: none.",
        ge=0,
        le=8,
    )
    magnitude: float = setting(5.0, "Augmentation", "Strength of these operations.", ge=0, le=10)
    erasing: float = setting(
        0.1,
        "Augmentation",
        "Share of the images in which a random rectangle is erased.",
        ge=0,
        le=1,
    )
    mixup: float = setting(0.1, "Augmentation", "MixUp alpha; 0: off.", ge=0, le=1000)
    cutmix: float = setting(
        0.0,
        "Augmentation",
        "CutMix alpha; 0: off. With MixUp, each image gets either.",
        ge=0,
        le=1000,
    )

    epochs: int | None = setting(
        None, "Training", "Training epochs (default: about 1000 steps).", ge=1, le=MANY
    )
    batch_size: int = setting(64, "Training", "Images per step.", ge=1, le=MANY)
    learning_rate: float = setting(1e-3, "Training", "Peak learning rate.", gt=0, le=1000)
    warmup_epochs: int = setting(3, "Training", "Epochs of linear warm-up.", ge=0, le=MANY)
    schedule: Literal["cosine", "constant"] = setting(
        "cosine", "Training", "Learning-rate schedule."
    )
    label_smoothing: float = setting(
        0.1, "Training", "Label smoothing of the cross-entropy (one label per image).", ge=0, lt=1
    )
    class_weights: Literal["none", "balanced", "sqrt"] = setting(
        "none", "Training", "Class weighting of the loss."
    )
    patience: int = setting(
        0,
        "Training",
        "Early stopping: epochs without improvement on the validation images; 0: train to the end, then keep the best "
        "epoch.",
        ge=0,
        le=MANY,
    )
    workers: int = setting(
        0,
        "Training",
        "Processes that read and augment images; 0: the training process itself.",
        ge=0,
        le=256,
    )

    @field_validator("image_size", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        """Take a number from YAML or Python for the word that it is on the command line, and say what a size is."""
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if value is not None and not (isinstance(value, str) and re.fullmatch(_SIZE, value)):
            raise ValueError(f"'{value}' is not an image size such as 64 or 48x64 (height x width)")
        return value

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that images are brought to; None where it follows from the images."""
        if self.image_size is None:
            return None
        height, _, width = self.image_size.partition("x")
        return int(height), int(width or height)

    @model_validator(mode="after")
    def _consistent(self) -> RecognizeRecipe:
        if self.test_fraction + self.val_fraction >= 0.95:
            raise ValueError("test_fraction and val_fraction leave nothing to train on")
        if self.size is not None and not min(self.size) >= 4:
            raise ValueError("image_size must be 4 pixels or more")
        return self

    def _rules(self, trained: bool, networks: bool) -> dict[str, tuple[str, ...]]:
        rules = super()._rules(trained, networks)
        return rules if self.operations else {**rules, "operations is 0": ("magnitude",)}


@overload
def make_recipe(values: dict[str, Any]) -> Recipe: ...
@overload
def make_recipe(values: dict[str, Any], kind: type[R]) -> R: ...
def make_recipe(values: dict[str, Any], kind: type[Settings] = Recipe) -> Settings:
    """Build a recipe, turning every complaint into one readable error.

    Args:
        values: settings that differ from the defaults.
        kind: of which task.

    Raises:
        ConfigError: an unknown key (with the nearest known one) or a value out of range.
    """
    for key in values:
        if key not in kind.model_fields:
            raise ConfigError(f"Unknown setting '{key}'.", did_you_mean(key, kind.model_fields))
    try:
        return kind(**values)
    except ValidationError as error:
        lines = []
        for issue in error.errors():
            name = ".".join(str(part) for part in issue["loc"])
            said = issue["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {said}" if name else said)
        raise ConfigError("; ".join(lines) + ".") from error


@overload
def load_recipe(path: str | Path, changes: dict[str, Any] | None = None) -> Recipe: ...
@overload
def load_recipe(path: str | Path, changes: dict[str, Any] | None, kind: type[R]) -> R: ...
def load_recipe(
    path: str | Path, changes: dict[str, Any] | None = None, kind: type[Settings] = Recipe
) -> Settings:
    """Read a YAML recipe and apply ``changes`` (flags win over the file).

    Args:
        path: the file.
        changes: settings that replace those of the file.
        kind: of which task.

    Raises:
        ConfigError: no such file, no YAML mapping, or a setting that :func:`make_recipe` refuses.
    """
    return make_recipe({**read_recipe(path), **(changes or {})}, kind)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read the settings of a YAML recipe without completing them.

    Raises:
        ConfigError: no such file, too large, or no YAML mapping.
    """
    path = Path(path)
    try:
        if path.stat().st_size > RECIPE_LIMIT:
            raise ConfigError(f"{path} is too large to be a recipe.")
        values = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The recipe {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"The recipe {path} is not valid YAML: {error}.") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"The recipe {path} is not a list of 'setting: value' lines.")
    return values
