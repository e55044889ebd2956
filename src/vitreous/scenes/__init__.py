"""Files of spectral images to labelled cubes and back."""

from vitreous.scenes.formats import open_scene, write_scene
from vitreous.scenes.labels import open_labels

__all__ = ["open_labels", "open_scene", "write_scene"]
