"""A server with OpenAI's chat-completions interface over a predictor; needs the extra ``serve``."""
