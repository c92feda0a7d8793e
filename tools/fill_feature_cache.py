"""The command ``mg-llava fill-features``: mg_llava/commands/fill_features.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("fill-features")
