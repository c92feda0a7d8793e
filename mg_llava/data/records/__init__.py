"""Record files: opening, schema, tables."""
