"""Drawing on pictures: boxes, marks, letters."""
