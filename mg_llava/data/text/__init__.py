"""From conversations to token ids, and limits of tokens."""
