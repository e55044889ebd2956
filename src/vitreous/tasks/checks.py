"""What is refused before a scene is opened, and where the sizes in an error come from."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitreous.catalog.registry import check_system
from vitreous.errors import ConfigError, SplitError
from vitreous.recipe import Recipe

FEWEST_NORMALISED = 8  # patches of a batch, for batch norms to know their statistics


def check_models(recipe: Recipe) -> nn.Module | None:
    """Refuse a model or baseline that could not be built or trained: all of them are built once, without memory.

    Returns:
        The network that is to be trained, without weights; None for an estimator.

    Raises:
        ModelError: arguments that make no network, or images too small for it.
        ConfigError: settings that an estimator cannot have, or batches of one patch for a network with batch norms.
    """
    size = recipe.tile_size if recipe.mode == "dense" else recipe.patch_size
    nets = {}
    for name in dict.fromkeys((recipe.model, *recipe.baselines)):
        own = name == recipe.model
        # What a run starts from has a size of its own, which is compared with the recipe's when it is loaded.
        side = None if own and recipe.init is not None else size
        nets[name] = net = check_system(name, recipe.model_args if own else {}, image_size=side)
        if net is not None and recipe.mode != "dense":
            check_batch_norms(name, net, recipe.batch_size)
    return nets[recipe.model]


def check_batch_norms(name: str, net: nn.Module, batch_size: int) -> None:
    """Refuse to train batch norms on one patch or image, whose level is lost then, and warn where few set them.

    Args:
        name: of the network, for messages.
        net: the network, with or without weights.
        batch_size: of its training.

    Raises:
        ConfigError: batches of one for a network with batch norms.
    """
    few = batch_size < FEWEST_NORMALISED
    if not few or not any(isinstance(module, _BatchNorm) for module in net.modules()):
        return
    if batch_size == 1:
        raise ConfigError(
            f"'{name}' uses batch normalization, which cannot be trained with --batch-size 1.",
            "Use --batch-size 2 or more; 16 to 64 is usual.",
        )
    warnings.warn(
        f"'{name}' uses batch normalization, and --batch-size is {batch_size}: its statistics will be "
        "noisy and accuracy may suffer. 16 to 64 are usual.",
        stacklevel=3,
    )


@dataclass(frozen=True)
class Context:
    """The square of pixels that one of a recipe's predictions depends on.

    Attributes:
        size: its side in pixels.
        origin: where it comes from, behind "comes from".
        remedy: what makes it smaller; empty where the patch size does.
    """

    size: int
    origin: str
    remedy: str = ""


def explained(error: SplitError, recipe: Recipe, context: Context) -> SplitError:
    """Return an error that also says why it speaks of other patches than the recipe, and what makes those smaller.

    Args:
        error: about a split.
        recipe: the settings.
        context: the widest, which the split was to be drawn for.
    """
    side = f"{context.size} x {context.size}"
    if side not in error.problem or (context.size == recipe.patch_size and not context.remedy):
        return error
    fix = error.fix
    if context.remedy:
        fix = fix.replace("Use a smaller patch_size or block_size", f"Use {context.remedy}")
    return SplitError(f"{error.problem} {side} comes from {context.origin}.", fix)
