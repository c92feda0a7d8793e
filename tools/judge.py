"""The command ``mg-llava judge``: mg_llava/commands/judge.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("judge")
