"""What must not be written because it is being read."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from vitreous.errors import ConfigError


def check_overwrite(out: Path, scene: xr.DataArray) -> None:
    """Refuse to write over the scene that is being read.

    Raises:
        ConfigError: both are the same file, or share the ENVI header that tells what their pixels are.
    """
    source = str(scene.attrs.get("source") or "")
    if source and _files(out) & _files(Path(source)):
        raise ConfigError(f"{out} would overwrite the scene itself.", "Choose another name.")


def _files(scene: Path) -> set[Path]:
    """Return what a scene of this name consists of."""
    path = scene.resolve()
    pair = {path.with_suffix(".hdr"), path.with_suffix(".dat")}
    envi = path in pair or (
        path.suffix not in {".tif", ".npy"} and path.with_suffix(".hdr").is_file()
    )
    return {path} | (pair if envi else set())
