"""The command ``mg-llava fill-tokens``: mg_llava/commands/fill_tokens.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("fill-tokens")
