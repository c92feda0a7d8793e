"""Detections before and after a refinement: COCO's numbers, on pictures as they are and on shifted copies."""
