"""Fewer tokens in the later blocks of a plain Vision Transformer."""
