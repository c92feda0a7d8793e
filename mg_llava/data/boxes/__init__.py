"""Inside of the box store: file format, table, conversion, lookup by content, policies; `box_store` is its door."""
