"""Special token indices and the placeholder that the text side and the model agree on."""

IMAGE_TOKEN_INDEX = -200
"""Stands in ``input_ids`` where the tokens of one picture and its boxes go."""

VIDEO_TOKEN_INDEX = -201
"""Stands in ``input_ids`` where the frames of one video go."""

PLACEHOLDERS = frozenset({IMAGE_TOKEN_INDEX, VIDEO_TOKEN_INDEX})
"""All ids that stand for tokens of something else."""

IGNORE_INDEX = -100
"""Label of every position that carries no loss."""

PAD_TOKEN_ID = 0
"""Right padding of ``input_ids``; padded positions are masked by column, so the value is never read."""

IMAGE_PLACEHOLDER = "<image>"
"""Marks the place of a picture in the text of a conversation."""

VIDEO_PLACEHOLDER = "<video>"
"""Marks the place of all frames of a video."""
