# SPDX-License-Identifier: Apache-2.0
"""Folders that may lie in a bucket (gs://...): everything of a run is written and read through `epath`."""

import os
from typing import TypeAlias

import fsspec
from etils import epath

# gcsfs remembers what it has listed; here other processes, and people, write into the same folders.
fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False

PathLike: TypeAlias = str | os.PathLike[str]


def in_bucket(path: PathLike) -> bool:
    """Whether a path is a URL, whose objects are written whole and cannot grow."""
    return "://" in os.fspath(path)


def make_folder(path: PathLike, flag: str) -> epath.Path:
    """The folder to write into, which is made if it is not there.

    Args:
      path: of the folder.
      flag: by which it was given.

    Raises:
      ValueError: it cannot be made or written.
    """
    folder, wrong = place(path), ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not in_bucket(folder) and not os.access(folder, os.W_OK):
            wrong = "no permission"
    except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        wrong = str(error.strerror)
    if wrong:
        raise ValueError(f"cannot write into the folder {folder} ({wrong}): give another with {flag}")
    return folder


def place(path: PathLike) -> epath.Path:
    """The path, absolute: Orbax wants that, and `epath` alone would put the current folder before gs://."""
    made = epath.Path(path)
    return made if in_bucket(made) else made.absolute()
