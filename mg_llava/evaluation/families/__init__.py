"""The families of benchmarks: one file each, with how data is loaded, asked and scored, and where it is published.

To add a benchmark, write one file here, and one test:

1. ``load_x(paths)`` reads the data files into annotations, ``score_x(annotations, predictions, **options)`` scores
   prediction lines by every rule that applies (``scoring.joining`` joins them and lays the result out).
2. A class derived from ``Benchmark`` with ``@BENCHMARKS.register``: ``scorer``, ``form``, ``load``, ``rate``,
   ``headline``, ``releases`` (its published data sets) and ``questions()``; ``judge`` if a judge grades the replies.
3. Import torch, Pillow and the model inside of functions only: scoring does without.

Everything else reads the registry: ``tools/evaluate.py --list``, the help of ``tools/score.py``, ``tools/judge.py``,
``xtuner test``. A table of multiple-choice questions needs a few lines at the end of ``multiple_choice`` alone. A
module outside of the package does as well, if the config names it under ``custom_imports``.
"""
