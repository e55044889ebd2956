"""Tables of tensors, as files and reference implementations hold them: what is asked of them before anything is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vitreous.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

# Tensors that references keep but do not learn: they follow from the sizes, or only count training steps.
DERIVED = (
    "relative_position_index",
    "relative_coords_table",
    "attn_mask",
    "attention_bias_idxs",
    "num_batches_tracked",
)
WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and averaged models; compiled models


def without_prefix(
    tensors: Mapping[str, Tensor], prefixes: Sequence[str] = WRAPPERS
) -> dict[str, Tensor]:
    """Drop the names of wrappers that stand before a network's own.

    A wrapper may keep tensors of its own beside the network's: an averaged model counts its steps (``n_averaged``
    beside ``module.*``), a training module holds its loss (``criterion.*`` beside ``model.*``). So a prefix counts
    from half of the names on; the others stay as they are.
    """
    found = dict(tensors)
    while prefix := next((p for p in prefixes if _wraps(p, found)), ""):
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found


def _wraps(prefix: str, names: Mapping[str, Tensor]) -> bool:
    """Tell whether half of the names begin with ``prefix``, and none would be there twice without it."""
    inner = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    return bool(inner) and 2 * len(inner) >= len(names) and inner.isdisjoint(names)


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights of a training that diverged, or of a damaged file.

    Args:
        tensors: weights by name; those without memory (on the meta device) have no values to look at, and masks
            (``DERIVED``) may well be infinite.
        source: where they come from, for the message.

    Raises:
        CheckpointError: a value is NaN or infinite; the message names a few tensors.
    """
    bad = [
        f"{name} ({'NaN' if value.isnan().any() else 'infinite'})"
        for name, value in tensors.items()
        if value.is_floating_point()
        and not value.is_meta
        and not name.endswith(DERIVED)
        and not bool(value.isfinite().all())
    ]
    if bad:
        raise CheckpointError(
            f"{source} holds NaN or infinite values in {len(bad)} of {len(tensors)} tensors: "
            f"{', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}.",
            "The training that wrote it diverged, or the file is damaged; use an earlier checkpoint.",
        )
