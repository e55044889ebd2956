"""Architectures and classical estimators: one file per system, its card at the top."""
