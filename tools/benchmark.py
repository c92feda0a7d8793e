"""The command ``mg-llava benchmark``: mg_llava/commands/benchmark.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("benchmark")
