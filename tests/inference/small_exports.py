"""A network that is quick to export, and its export with the tiny scene's classes."""

import torch

from tiny_scene import CLASSES, tiny_classifier, tiny_labels, tiny_scene
from vitreous.inference.export import Product, export

NAMES, COLORS = ["a", "b", "c"], ["#ff0000", "#00ff00", "#0000ff"]


def make_export(classifier, folder, form="onnx", **options):
    """Export a classifier with the tiny scene's classes; returns folder and parity."""
    product = Product(classifier, "tiny", NAMES[:CLASSES], COLORS[:CLASSES])
    pixels = tiny_labels().ravel().nonzero()[0]
    return export(product, folder, form=form, scene=tiny_scene(), pixels=pixels, **options)


class Small(torch.nn.Module):
    """A network that is quick to export; its front-end can be shared by patches."""

    num_classes, stem_reach = CLASSES, 1

    def __init__(self):
        super().__init__()
        self.front = torch.nn.Conv2d(4, 6, 3, padding=1, bias=False)  # no class is favoured
        self.last = torch.nn.Linear(6, CLASSES, bias=False)

    def stem(self, x):
        return torch.tanh(self.front(x))

    def forward_patches(self, x):
        return self.last(x.mean((2, 3))) * 30

    def forward(self, x):
        return self.forward_patches(self.stem(x))


def small_classifier(**settings):
    """Return a classifier of the tiny scene around :class:`Small`."""
    classifier = tiny_classifier(tiny_scene(), "vit_test", **settings)
    classifier.net = Small()
    return classifier.eval()
