"""Changes of a config on command lines, as XTuner takes them."""

import argparse
from typing import Any

from mmengine.config import DictAction


class _Changes(DictAction):
    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None
    ) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError):  # no "=", or brackets that do not fit
            parser.error(f"{option_string}: KEY=VALUE is needed, found {' '.join(values)}")


def add_config_changes(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument("--cfg-options", nargs="+", action=_Changes, metavar="KEY=VALUE", help="changes of the config")
