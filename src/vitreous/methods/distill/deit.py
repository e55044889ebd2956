"""DeiT: learn from labels with one token and from a teacher with another (arXiv 2012.12877)."""

from __future__ import annotations

from torch import Tensor, nn

from vitreous.catalog.card import Card
from vitreous.errors import ModelError
from vitreous.layers.answers import Answer, Heads, Targets

CARD = Card(
    slug="deit",
    title="Training data-efficient image transformers & distillation through attention",
    kind="method",
    summary="Trains a network on labels and on what a trained run says of the same pixels; with "
    "a distillation token, each has a head of its own.",
    when="A small network that should come close to a larger or a convolutional one that is "
    "trained already. Not measured here yet.",
    paper="arXiv 2012.12877; soft distillation: arXiv 1503.02531",
    year=2021,
    source_licence="Apache-2.0 (facebookresearch/deit): re-implemented from the equations",
    tasks=["classify"],
    models=["*"],
    variants={
        "deit_hard": {},
        "deit_soft": {"kind": "soft", "temperature": 3.0, "weight": 0.1},
    },
    published=[
        {"model": "vit_small", "distillation": "none", "top1": 79.8},
        {"model": "vit_small", "distillation": "hard, class token", "top1": 80.9},
        {"model": "vit_small_distilled", "distillation": "hard, both heads", "top1": 81.2},
        {"model": "vit_base", "distillation": "none", "top1": 81.8},
        {"model": "vit_base_distilled", "distillation": "hard, both heads", "top1": 83.4},
    ],
    recipe={
        "teacher": "RegNetY-16GF, 82.9 % top-1",
        "hard": "half of the loss on each target",
        "soft": "temperature 3, weight 0.1",
        "epochs": 300,
    },
    claim="A DeiT-S that learns the decisions of a convolutional teacher with a distillation token "
    "is 1.4 points better on ImageNet than one without a teacher; hard distillation is better "
    "than soft, and the token better than distilling the class token.",
    miniature="CIFAR-10 images, a small ViT with a distillation token and a ConvNeXt as teacher, "
    "compared with the same ViT without a teacher, with soft distillation and without the token.",
    notes=[
        "Usage: vitreous train --model vit_tiny_distilled --teacher RUN --distill deit_hard. Networks "
        "without a distillation head learn both targets with the one they have.",
        "Usage: Predictions are the mean of both heads. In training, networks with distilling = "
        "True return them separately.",
        "As in the reference: The teacher sees the pixels that the student sees: the same crop, "
        "flips, mixing and noise. Its decision is not mixed as the labels are.",
        "Differs from the reference: Class weights and label smoothing of the recipe also apply "
        "to the teacher's decisions. The divergence is a mean over images, as in the paper; "
        "their code also divides by the number of classes.",
    ],
)

KINDS = ("hard", "soft")


def prepare(model: nn.Module) -> None:
    """Let a network that is trained return both of its heads, where it has two.

    Args:
        model: the student, changed in place.
    """
    for module in model.modules():
        if getattr(module, "distillation_head", None) is not None:
            module.distilling = True  # type: ignore[assignment]


def loss(
    student: Answer,
    teacher: Answer,
    targets: Targets,
    *,
    kind: str = "hard",
    temperature: float = 1.0,
    weight: float = 0.5,
) -> Tensor:
    """Return the loss on labels and teacher (eqs. 2 and 3).

    Args:
        student: what the network says.
        teacher: what the teacher says of the same pixels.
        targets: the labels.
        kind: ``hard`` (learn what the teacher decides) or ``soft`` (its probabilities).
        temperature: tau, that soft probabilities are softened by.
        weight: lambda, the teacher's part of the loss.

    Raises:
        ModelError: settings out of range.
    """
    check(kind=kind, temperature=temperature, weight=weight)
    both = student.logits
    labels, taught = both if isinstance(both, Heads) else (both, both)
    decided = teacher.scores
    other = (
        targets.as_decided(taught, decided)
        if kind == "hard"
        else targets.divergence(taught, decided, temperature)
    )
    return (1 - weight) * targets.loss(labels) + weight * other


def check(*, kind: str, temperature: float, weight: float) -> None:
    """Refuse settings that make no distillation.

    Raises:
        ModelError: says which.
    """
    if kind not in KINDS:
        raise ModelError(f"DeiT has no '{kind}' distillation.", "Choose hard or soft.")
    if not 0 < temperature < float("inf"):
        raise ModelError(
            f"temperature = {temperature} is out of range.",
            "Use a value above 0; 1 to 4 is common.",
        )
    if not 0 < weight <= 1:
        raise ModelError(f"weight = {weight} is out of range.", "Use a value above 0, at most 1.")
