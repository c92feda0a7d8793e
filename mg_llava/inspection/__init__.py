"""Looking at data before a training: the doctor and the browser."""
