"""The command ``mg-llava evaluate``: mg_llava/commands/evaluate.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("evaluate")
