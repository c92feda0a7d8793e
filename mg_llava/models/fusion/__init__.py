"""Fusions of the low- and high-resolution encoders."""
