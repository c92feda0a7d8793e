"""Files of weights: reading them, and which part of a model each tensor belongs to."""
