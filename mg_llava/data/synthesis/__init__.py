"""Training records made of annotated objects: questions and answers about words, boxes and pictures of objects."""
