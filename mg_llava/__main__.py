"""``python -m mg_llava COMMAND ...``, and the script ``mg-llava``; no other code imports this."""

import sys

from mg_llava.work.interrupts import end_at_once

end_at_once()  # before all other imports

from mg_llava.commands import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
