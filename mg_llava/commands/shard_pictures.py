"""Pack the pictures and videos of records into tar files, which training reads in place of a folder.

Millions of small files are slow on network file systems; tar files of a gigabyte are not, and any picture is read by
its place. Records stay as they are: image_folder="OUT/{00000..00041}.tar" of a source takes the place of the folder.
Interrupted work goes on where it was stopped, and gives the same files.

Examples:
    mg-llava shard-pictures llava_665k.json --images data/images --out data/shards --workers 8
    mg-llava shard-pictures a.jsonl b.jsonl --images data/images --out data/shards --size 256MB
    mg-llava shard-pictures s3://bucket/a.json --images s3://bucket/images --out data/shards

Exit status: 0 done, 1 the data cannot be used (the message says why), 2 wrong arguments.
"""

import argparse
import json
import sys

from mg_llava.work.numbers import whole

AFTER = "whole tar files are kept, the same command continues"
"""What to do after Ctrl-C."""


def main() -> int:
    """Write the tar files; the last line printed is a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", help="record files (.json, .jsonl, .parquet, tar files), or their URLs")
    parser.add_argument("--images", required=True, help="folder, tar files or URL that their paths are relative to")
    parser.add_argument("--out", required=True, help="folder of the tar files")
    parser.add_argument("--size", default="1GB", help="bytes of a tar file (default: 1GB)")
    parser.add_argument("--format", default="llava", help="of the records: llava, ms-swift or sharegpt")
    parser.add_argument("--outside-pictures", choices=("error", "allow"), default="error", help="about links")
    parser.add_argument("--workers", type=whole(), default=1, help="processes that write (default: this one alone)")
    arguments = parser.parse_args()
    from tqdm import tqdm

    from mg_llava.conversion.folder_writing import parse_size
    from mg_llava.data.pictures.shard_writing import plan_picture_shards, write_picture_shards

    try:
        where = arguments.records, arguments.images, arguments.out, parse_size(arguments.size)
        shards = plan_picture_shards(*where, arguments.format, arguments.outside_pictures == "allow")
        count = sum(map(len, shards.parts))
        with tqdm(total=count, desc="pictures") as bar:
            written = write_picture_shards(shards, arguments.workers, bar.update)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = sum(member.size for part in shards.parts for member in part)
    about = {"image_folder": shards.pattern, "pictures": count, "bytes": size, "shards": len(shards.parts)}
    print(json.dumps({**about, "written": written}))
    return 0
