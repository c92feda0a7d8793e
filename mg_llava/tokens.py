"""Special token indices and the placeholder that the text side and the model agree on."""

import re
from typing import Any

IMAGE_TOKEN_INDEX = -200
"""Stands in ``input_ids`` where the tokens of one picture and its boxes go."""

VIDEO_TOKEN_INDEX = -201
"""Stands in ``input_ids`` where the frames of one video go."""

OBJECT_TOKEN_INDEX = -202
"""Stands in ``input_ids`` where the tokens of an object image go."""

BOX_TOKEN_INDEX = -203
"""Stands in ``input_ids`` where the token of one named box goes."""

PLACEHOLDER_IDS = frozenset({IMAGE_TOKEN_INDEX, VIDEO_TOKEN_INDEX, OBJECT_TOKEN_INDEX, BOX_TOKEN_INDEX})
"""All ids that stand for tokens of something else."""

IGNORE_INDEX = -100
"""Label of every position that carries no loss."""

PAD_TOKEN_ID = 0
"""Right padding of ``input_ids``; padded positions are masked by column, so the value is never read."""

IMAGE_PLACEHOLDER = "<image>"
"""Marks the place of a picture in the text of a conversation."""

VIDEO_PLACEHOLDER = "<video>"
"""Marks the place of all frames of a video."""

BOX_PLACEHOLDER = re.compile(r"<box:([0-9]{1,6})>")
"""Marks the place of the coordinates of a region, by its number from 0."""

OBJECT_PLACEHOLDER = re.compile(r"<object:([0-9]{1,6})>")
"""Marks the place of the object image of a region, by its number from 0."""


def tokens_without_embeddings(tokenizer: Any, rows: int) -> str | None:
    """The tokens that an LLM has no word embedding for, as a sentence with the fix; None where there is none.

    Args:
        tokenizer: Of transformers. Its padding token does not count: padded places are masked.
        rows: Number of the LLM's word embeddings.
    """
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= rows and i != tokenizer.pad_token_id}
    if not beyond:
        return None
    first = ", ".join(f"{beyond[i]!r} (id {i})" for i in sorted(beyond)[:3])
    return (
        f"the tokenizer has ids up to {max(beyond)}, the LLM {rows} word embeddings: {len(beyond)} tokens have none, "
        f"such as {first}. Use the tokenizer of the LLM's own folder; or, if tokens were added, write both into a new "
        f"folder after llm.resize_token_embeddings({max(beyond) + 1}), and train the new rows with tuning='full' or "
        'lora=dict(modules_to_save=["embed_tokens", "lm_head"])'
    )
