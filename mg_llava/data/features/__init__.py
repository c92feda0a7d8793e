"""What the frozen encoders give for each picture, kept in files."""
