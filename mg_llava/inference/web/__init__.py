"""A web page on which boxes are seen, changed and asked about."""
