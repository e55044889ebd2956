"""From cubes to batches: splits, windows of training pixels, what bands a model was made for."""
