"""Types that options of several commands share."""

import pathlib
from typing import Annotated

import tyro

#: Of a file or a folder.
Path = Annotated[str | pathlib.Path, tyro.conf.arg(metavar="PATH")]
