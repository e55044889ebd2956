"""Trained systems applied to whole scenes."""
