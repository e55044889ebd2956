"""Weights that a formula gives, so that a file need only hold names, shapes and what timm made of them."""

import math

import torch


def waves(shape, start, scale):
    """Return a tensor of values between -scale and scale that look unordered."""
    at = torch.arange(math.prod(shape), dtype=torch.float64)
    return (torch.sin(at * (0.71 + 0.013 * start) + 1.3 * start) * scale).reshape(shape)


def weights_of(shapes):
    """Return a state dict in double precision for names and shapes in a fixed order."""
    weights = {}
    for number, (name, shape) in enumerate(shapes.items()):
        if name.endswith(("num_batches_tracked", "idxs")):
            weights[name] = torch.zeros(shape, dtype=torch.long)
        elif name.endswith("running_var") or (
            len(shape) == 1 and name.endswith(("weight", "gamma"))
        ):
            weights[name] = 1 + waves(shape, number, 0.5)
        elif len(shape) < 2 or "pos" in name or "token" in name.rpartition(".")[2]:
            weights[name] = waves(shape, number, 0.5)
        elif name.endswith(("table", "biases")):
            weights[name] = waves(shape, number, 1.0)
        else:
            weights[name] = waves(shape, number, 1.5 / math.sqrt(math.prod(shape[1:])))
    return weights


def images_of(shape):
    """Return the images that go with them."""
    return waves(shape, 5, 2.0)
