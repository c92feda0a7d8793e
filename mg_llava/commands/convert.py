"""Convert a checkpoint of any kind to a Hugging Face folder, an LLM folder with a vision part, or a .pth file.

What SOURCE is, is found out: a .pth of `xtuner train` or of the reference's release (code that may be stored in it is
never run), a DeepSpeed folder (ZeRO 1, 2, 3), a work directory, a bare state dict, safetensors, LoRA adapters in a
.pth or in a PEFT folder, or a folder that this tool wrote. All keys are checked before anything is written; a
file or folder takes its place in one step; after a kill the same command continues an unfinished folder.

Examples:
    mg-llava convert work_dirs/mg_llava_vicuna7b_instruct --inspect
    mg-llava convert iter_5198.pth out/hf --to hf
    huggingface-cli upload NAME/MODEL out/hf        # weights, config, processor and model card as they are
    mg-llava convert published.pth out/hf --to hf --config configs/mg_llava_vicuna7b_instruct.py
    mg-llava convert out/hf weights.pth --to reference --dtype float16
    mg-llava convert llm_adapter out/parts --to parts --add stage1.pth --config CONFIG.py

Exit status: 0 done (--inspect: complete), 1 the source is damaged or incomplete or the target cannot be written,
2 wrong arguments, 130 interrupted.
"""

import argparse
import contextlib
import json
import sys


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="checkpoint: file, folder, work directory, or hub id")
    parser.add_argument("target", nargs="?", help="folder (hf, parts) or .pth file (reference, mmengine) to write")
    parser.add_argument("--to", choices=("hf", "parts", "reference", "mmengine"), help="layout to write")
    parser.add_argument("--inspect", action="store_true", help="say what SOURCE is and report on its keys")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--config", help="training config; default: the one that the checkpoint carries")
    parser.add_argument("--add", action="append", default=[], help="further checkpoint for parts that SOURCE lacks")
    parser.add_argument("--llm", help="the LLM's folder; default: the config's")
    parser.add_argument("--lora-alpha", type=float, help="where neither config nor adapter_config.json tells it")
    parser.add_argument("--merge", action="store_true", help="merge adapters into .pth files as well")
    parser.add_argument(
        "--dtype",
        default="keep",
        choices=("keep", "float32", "bfloat16", "float16"),
        help="of all weights; those of DeepSpeed folders are float32 (default: %(default)s)",
    )
    parser.add_argument("--max-shard-size", default="4GB", help="largest file in a folder (default: %(default)s)")
    parser.add_argument("--standalone", action="store_true", help="hf: loads without this package being installed")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier conversion wrote")
    parser.add_argument("--verify", action="store_true", help="compare the checksums of SOURCE first")
    arguments = parser.parse_args()
    if not arguments.inspect and not (arguments.target and arguments.to):
        parser.error("give a target and --to, or --inspect")
    return arguments


def main() -> int:
    """Inspect or convert."""
    arguments = parse_arguments()
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print when they are imported
        from mg_llava.conversion import ConversionOptions, convert, inspect
        from mg_llava.models.weights.folders import find_folder, is_model
    from tqdm import tqdm

    names = ("config", "add", "llm", "dtype", "max_shard_size", "merge", "standalone", "overwrite", "verify")
    lora = {"lora_alpha": arguments.lora_alpha} if arguments.lora_alpha is not None else None
    options = ConversionOptions(**{name: getattr(arguments, name) for name in names}, lora=lora)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the log
            source = find_folder(arguments.source) if is_model(arguments.source) else arguments.source
            if arguments.inspect:
                checkpoint, report = inspect(source, options)
                result = {"path": str(checkpoint.path), "kind": checkpoint.kind, **report.to_dict()}
            else:
                with tqdm(unit="B", unit_scale=True, desc="writing") as bar:
                    report = convert(
                        source, arguments.target, arguments.to, options, lambda name, size: bar.update(size)
                    )
                result = {"target": arguments.target, "to": arguments.to, **report.to_dict()}
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was at the target is unchanged, the same command continues", file=sys.stderr)
        return 130
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"{result.get('kind') or 'wrote ' + result['target']}\n{report}")
        for problem in report.problems:
            print(f"incomplete: {problem}")
    return 1 if report.problems else 0
