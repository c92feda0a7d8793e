"""The command ``mg-llava convert-boxes``: mg_llava/commands/convert_boxes.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("convert-boxes")
