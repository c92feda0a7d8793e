"""The command ``mg-llava refine``: mg_llava/commands/refine.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("refine")
