"""Boxes of pictures: store, conversion, lookup by content, filter, augmentation; `store` is the door."""
