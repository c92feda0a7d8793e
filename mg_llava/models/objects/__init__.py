"""Tokens of objects."""
