"""What an LLM that knows the law of the scenes does for detection and answers, for ``tools/run_experiments.py``."""

SHIFTS = {
    "clean": "clean",
    "contrast": "contrast:0.5",
    "noise 25": "noise:25",
    "noise 40": "noise:40",
    "blur": "blur:1.5",
}
ARMS = ("raw", "language", "language, weight 1", "head", "both")
ANSWERS = ("none", "raw", "language", "gold")
LEAVES = [f"configs/mr_mllm/mr_mllm_nano_{stage}.py" for stage in ("pretrain", "instruct")]

objects = {
    f"{metric} {name}, {arm}": f"lawful:objects/{shift}/{arm}/numbers/{metric}"
    for metric, shifts in (("AP50", SHIFTS), ("AP", {"clean": "clean", "blur": "blur:1.5"}))
    for name, shift in shifts.items()
    for arm in ARMS
}
answers = {
    f"answers {name}, {arm}": f"lawful:answers/{SHIFTS[name]}/{arm}/all"
    for name in ("clean", "blur")
    for arm in ANSWERS
}
grid = {
    "name": "lawful",
    "caption": "AP, AP50 and exact match in % on held-out pictures",
    "rows": [
        {
            "name": arm,
            "title": f"{arm} LLM",
            "leaves": LEAVES,
            "options": [
                f"model.llm.path=data/nano/lawful/{arm}_{{seed}}",
                "train_dataloader.dataset.draw.repeat=0.5",  # 37 steps of each stage
            ],
        }
        for arm in ("unknowing", "knowing")
    ],
    "seeds": [0, 1, 2],
    "prepare": "python data/nano/lawful_llm.py --seeds {seeds}",
    "evaluate": "python data/nano/lawful_evaluate.py {config} --checkpoint {checkpoint} --out {out} --limit 100",
    "metrics": {**answers, **objects, "AP50 blur, named": "lawful"},
    "results": "data/nano/lawful.json",
    "report": "data/nano/LAWFUL.md",
    "quick": {"seeds": [0], "options": ["train_cfg.max_iters=4", "train_cfg.max_epochs=None"]},
}
