"""The command ``mg-llava convert``: mg_llava/commands/convert.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("convert")
