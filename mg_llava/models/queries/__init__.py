"""Learned queries that read what encoders see."""
