"""The command ``mg-llava convert-gguf``: mg_llava/commands/convert_gguf.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("convert-gguf")
