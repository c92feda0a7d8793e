"""Test settings of a run: ``xtuner test CONFIG --checkpoint ...`` answers and scores its benchmarks."""

from mmengine.dataset import DefaultSampler

from mg_llava.evaluation.xtuner_loop import BenchmarkDataset, BenchmarkLoop, BenchmarkMetric


def evaluate_on(
    benchmarks,
    *,
    prompt_template,
    tokenizer,
    picture_processor,
    data_root="data/eval",
    boxes="detected",
    detector=None,
    batch_size=16,
    num_workers=4,
    limit=None,
    generation=None,
    prompt_parts=(),
):
    """Keys of a test run.

    ``benchmarks`` are names of the catalog (``tools/evaluate.py --list``), whose files are under ``data_root``, or
    configs with files of their own: ``dict(type="mg_llava....", data=..., name=..., box_path=...)``.
    """
    dataset = dict(
        type=BenchmarkDataset,
        benchmarks=list(benchmarks),
        tokenizer=tokenizer,
        template=prompt_template,
        picture_processor=picture_processor,
        data_root=data_root,
        boxes=boxes,
        detector=detector,
        limit=limit,
        prompt_parts=prompt_parts,
    )
    return dict(
        test_dataloader=dict(
            batch_size=batch_size,
            num_workers=num_workers,
            dataset=dataset,
            # every question once, whatever the number of processes
            sampler=dict(type=DefaultSampler, shuffle=False, round_up=False),
        ),
        test_evaluator=dict(type=BenchmarkMetric),
        test_cfg=dict(type=BenchmarkLoop, **(generation or {})),
        # as in runtime.py, but it also loads what `xtuner test` gives it; mmengine wants the name
        model_wrapper_cfg=dict(
            type="mg_llava.evaluation.xtuner_loop.DistributedModel",
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=False,
        ),
    )


# held-out questions of the miniature, as data/nano/make_data.py writes them; boxes are found as for training
_nano_root = "data/nano/generated/"
nano_evaluation = dict(
    benchmarks=[
        dict(type="mg_llava.MMBench", data=_nano_root + "mmbench_nano.tsv", name="nano_mmbench"),
        dict(type="mg_llava.POPE", data=_nano_root + "pope", image_folder=_nano_root + "images", name="nano_pope"),
    ],
    detector=dict(type="mg_llava.ConnectedComponentProposals"),
    batch_size=32,
    num_workers=1,
    generation=dict(max_new_tokens=24),
)
