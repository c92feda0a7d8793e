"""The command ``mg-llava experiments``: mg_llava/commands/experiments.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("experiments")
