"""The command ``mg-llava shard-pictures``: mg_llava/commands/shard_pictures.py."""

from _door import open_door

if __name__ == "__main__":
    open_door("shard-pictures")
