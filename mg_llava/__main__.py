"""``python -m mg_llava COMMAND ...``, where the script ``mg-llava`` is not on the path."""

import sys

from mg_llava.commands import main

if __name__ == "__main__":
    sys.exit(main())
