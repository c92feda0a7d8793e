"""The command ``mg-llava serve``: mg_llava/commands/serve.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("serve")
