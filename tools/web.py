"""The command ``mg-llava web``: mg_llava/commands/web.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("web")
