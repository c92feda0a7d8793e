"""The command ``mg-llava browse``: mg_llava/commands/browse.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("browse")
