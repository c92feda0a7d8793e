"""The command ``mg-llava predict``: mg_llava/commands/predict.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("predict")
