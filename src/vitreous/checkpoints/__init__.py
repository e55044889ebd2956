"""Checkpoints: tensors and descriptions in files, and the networks that come back from them, ours and others'."""
