"""The command ``mg-llava plan``: mg_llava/commands/plan.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("plan")
