"""The command ``mg-llava score``: mg_llava/commands/score.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("score")
