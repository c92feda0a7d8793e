"""Small trained weights beside those of a frozen LLM."""
