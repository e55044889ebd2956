"""Cutting away parts of a trained model."""
