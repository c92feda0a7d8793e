"""The command ``mg-llava measure-grounding``: mg_llava/commands/measure_grounding.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("measure-grounding")
