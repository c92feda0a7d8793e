"""Detectors of objects, whole rows for ``mr_mllm``: where their weights are, and the size in which they see a picture.

Grounding DINO is asked for the classes that a row names; the others know those that they were trained on.
"""

from mg_llava.models import CellDetector, TransformerDetector

coco80 = (
    """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush
""".replace("\n", " ")
    .strip()
    .split(", ")
)

detr_r50 = dict(type=TransformerDetector, path="facebook/detr-resnet-50", image_size=800)
deformable_detr = dict(type=TransformerDetector, path="SenseTime/deformable-detr", image_size=800)
grounding_dino = dict(
    type=TransformerDetector,
    path="IDEA-Research/grounding-dino-tiny",
    image_size=800,
    classes=coco80,
)
nano = dict(type=CellDetector, path="data/nano/detector", image_size=256)
