"""Experiments: a grid of leaves and seeds, trained and evaluated side by side, resumed after a kill, and its table."""
