"""A convolution and its batch norm: one linear map at inference, and foldable into one; and what else fuses then."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Model = TypeVar("Model", bound=nn.Module)


class ConvNorm(nn.Sequential):
    """Convolution without bias, then batch norm.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        kernel: side of the kernel, odd.
        stride: its stride.
        padding: zeros around the map; half the kernel where not given.
        groups: of the convolution; as many as channels make it depth-wise.
        gain: first value of the norm's factors; 0 makes a residual branch the identity.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        nn.init.constant_(self.norm.weight, gain)


class Fusable(nn.Module):
    """A module that is trained in a richer form than it needs to be used in: several branches, norms before layers.

    Exports and quantizers put what :meth:`fused` returns in its place (:func:`fuse`).
    """

    def fused(self) -> nn.Module:
        """Return a module that computes what this one does in evaluation mode, to rounding, with fewer weights."""
        raise NotImplementedError


def fuse(model: nn.Module) -> None:
    """Put the fused form in the place of every :class:`Fusable` inside a model.

    A batch norm is fused as it works in evaluation, with its running statistics, whatever mode the model is in.
    """
    for name, child in model.named_children():
        if isinstance(child, Fusable):
            setattr(model, name, child.fused().train(child.training))
        else:
            fuse(child)


def folded(model: Model) -> Model:
    """Return a copy for use in which branches are fused and every :class:`ConvNorm` is one convolution.

    It gives the same scores in less time.
    """
    model = copy.deepcopy(model).eval()
    fuse(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, ConvNorm):
                setattr(parent, name, fuse_conv_bn_eval(child.conv, child.norm))
    return model
