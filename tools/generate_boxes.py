"""The command ``mg-llava boxes``: mg_llava/commands/boxes.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("boxes")
