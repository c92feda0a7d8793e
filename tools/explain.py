"""The command ``mg-llava explain``: mg_llava/commands/explain.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("explain")
