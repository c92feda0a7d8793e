"""Samples as the model sees them, on a page or in a picture."""
