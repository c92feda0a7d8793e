"""Processes, threads, files and devices: what every room needs and none owns."""
