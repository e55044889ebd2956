"""The provenance of weights in files and run folders: read before a training starts from them."""

from __future__ import annotations

from pathlib import Path

from vitreous.checkpoints import hub
from vitreous.checkpoints.headers import PROVENANCE
from vitreous.checkpoints.tensors import read_header
from vitreous.data.provenance import Provenance, provenance_from_json
from vitreous.tasks.runs import MODEL


def start_provenance(init: str | None) -> Provenance:
    """Return which ground the weights that a training starts from have learned from.

    Args:
        init: a run folder or a model file, here or on the hub; None starts from nothing.

    Raises:
        CheckpointError: the file is damaged. A missing one is left to its reader.
    """
    if init is None:
        return ()
    folder = Path(init)
    file = folder / MODEL if folder.is_dir() else hub.local(init)
    if not file.is_file():
        return ()
    header = read_header(file)
    known = header.get(PROVENANCE) if isinstance(header, dict) else None
    return provenance_from_json(known, folder.name)
