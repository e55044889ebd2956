"""What scores are compared with: hard and soft targets, several labels, pairs of mixed images."""

import pytest
import torch
import torch.nn.functional as F

from vitreous.tasks.losses import ClassTargets, LabelTargets, Mixed, cross_entropy


def scores(images=6, classes=4, seed=0):
    return torch.randn(images, classes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5, 3.0])])
def test_soft_targets_of_zeros_and_ones_are_class_numbers(smoothing, weights):
    classes = torch.tensor([0, 3, 1, 2, 3, 3])
    soft = F.one_hot(classes, 4).float()
    expected = F.cross_entropy(scores(), classes, weight=weights, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(scores(), soft, weights, smoothing), expected)
    torch.testing.assert_close(cross_entropy(scores(), classes, weights, smoothing), expected)


def test_soft_targets_are_shares():
    soft = scores(seed=1).softmax(1)
    expected = F.cross_entropy(scores(), soft)
    torch.testing.assert_close(cross_entropy(scores(), soft), expected)


def test_mixed_images_count_for_both_classes_by_their_shares():
    classes, other = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([5, 4, 3, 2, 1, 0])
    mixed = ClassTargets(classes, mixed=Mixed(other, 0.7)).loss(scores())
    soft = 0.7 * F.one_hot(classes, 4) + 0.3 * F.one_hot(classes[other], 4)
    torch.testing.assert_close(mixed, F.cross_entropy(scores(), soft))


def test_a_teachers_decision_is_not_mixed_again():
    teacher = scores(seed=2)
    targets = ClassTargets(torch.zeros(6, dtype=torch.long), mixed=Mixed(torch.arange(6), 0.6))
    expected = F.cross_entropy(scores(), teacher.argmax(1))
    torch.testing.assert_close(targets.as_decided(scores(), teacher), expected)


@pytest.mark.parametrize("targets", [
    ClassTargets(torch.zeros(6, dtype=torch.long)), LabelTargets(torch.zeros(6, 4))
])  # fmt: skip
def test_the_divergence_from_oneself_is_zero_and_from_others_is_not(targets):
    assert float(targets.divergence(scores(), scores(), 2.0)) == pytest.approx(0, abs=1e-6)
    far = targets.divergence(scores(), scores(seed=3), 2.0)
    assert float(far) > 0.1
    moved = scores().requires_grad_()
    targets.divergence(moved, scores(seed=3), 2.0).backward()
    assert moved.grad.abs().sum() > 0


def test_several_labels_are_each_there_or_not():
    labels = (scores(seed=4) > 0).float()
    targets = LabelTargets(labels, mixed=Mixed(torch.arange(6).flip(0), 0.7))
    expected = F.binary_cross_entropy_with_logits(scores(), 0.7 * labels + 0.3 * labels.flip(0))
    torch.testing.assert_close(targets.loss(scores()), expected)
    teacher = scores(seed=5)
    decided = F.binary_cross_entropy_with_logits(scores(), (teacher > 0).float())
    torch.testing.assert_close(targets.as_decided(scores(), teacher), decided)
    own, wanted = (scores() / 3).sigmoid(), (teacher / 3).sigmoid()
    divergence = wanted * (wanted / own).log() + (1 - wanted) * ((1 - wanted) / (1 - own)).log()
    torch.testing.assert_close(
        targets.divergence(scores(), teacher, 3.0), 9 * divergence.sum(1).mean()
    )
