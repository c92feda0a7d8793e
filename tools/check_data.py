"""The command ``mg-llava check``: mg_llava/commands/check.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("check")
