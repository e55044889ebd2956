"""Techniques done to a model: one file each, its card at the top."""
