"""The command ``mg-llava evaluate-mmbench``: mg_llava/commands/evaluate_mmbench.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("evaluate-mmbench")
