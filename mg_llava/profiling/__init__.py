"""Benchmarks of ``tools/benchmark.py``, a module each: ``HELP``, ``add_arguments(parser)``, ``run(args) -> dict``.

``run`` prints its readable table itself; the tool prints what it returns. Modules whose names begin with an underscore
are shared by them.
"""
