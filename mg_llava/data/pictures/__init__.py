"""Picture files, their frames, and the canvas that the model sees."""
