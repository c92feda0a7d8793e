"""The command ``mg-llava synthesize``: mg_llava/commands/synthesize.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("synthesize")
