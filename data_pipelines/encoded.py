# SPDX-License-Identifier: Apache-2.0
"""What frozen encoders made of a dataset, on disk: latents of pictures, states of captions.

`launch.encode` writes a folder for a dataset, in parts of neighbouring records, so that many hosts can write
at once:

    FOLDER/00002-of-00016/moments.npy          [n, h, w, M] float16
    FOLDER/00002-of-00016/input_moments.npy    the same of the picture to edit, for edits alone
    FOLDER/00002-of-00016/caption_states.npy   [n, T, W] float16
    FOLDER/00002-of-00016/valid.npy            [n] bool: records that could be read

Half precision keeps 11 bits, a thousandth of a value, far below the spread that the moments themselves give a
latent. Files are mapped into memory: only the records that are asked for are read.
"""

import bisect
import itertools
import pathlib
import re

import numpy as np

from data_pipelines.errors import DataError

NAMES = ("moments", "input_moments", "caption_states")


def part_folder(folder: str | pathlib.Path, part: int, parts: int) -> pathlib.Path:
    """Where a part lies."""
    return pathlib.Path(folder) / f"{part:05}-of-{parts:05}"


def part_range(records: int, part: int, parts: int) -> range:
    """The records of a part."""
    return range(records * part // parts, records * (part + 1) // parts)


class Encoded:
    """Random access to what `launch.encode` wrote, by the number of the record in its dataset."""

    def __init__(self, folder: str, records: int):
        """Opens a folder.

        Args:
          folder: with all parts.
          records: of the dataset that it was made of.

        Raises:
          DataError: no part, a part that is missing or damaged, or another number of records.
        """
        self.folder = folder
        found = sorted(path.name for path in pathlib.Path(folder).glob("*-of-*") if path.is_dir())
        counts = {int(match[1]) for name in found if (match := re.fullmatch(r"\d{5}-of-(\d{5})", name))}
        if len(counts) != 1 or len(found) != max(counts):
            raise self._error(
                f"{len(found)} parts of {' or '.join(map(str, sorted(counts))) or 'none'}",
                "run launch.encode for every part of one number of parts",
            )
        self.parts: list[dict[str, np.ndarray]] = []
        for name in found:
            part = {}
            for file in sorted((pathlib.Path(folder) / name).glob("*.npy")):
                try:
                    part[file.stem] = np.load(file, mmap_mode="r")
                except (ValueError, OSError) as error:
                    raise self._error(f"{name}/{file.name} cannot be read ({error})") from error
            if "valid" not in part or {len(x) for x in part.values()} != {len(part["valid"])}:
                raise self._error(f"the files of {name} are missing or of different length")
            self.parts.append(part)
        self.ends = list(itertools.accumulate(len(part["valid"]) for part in self.parts))
        if self.ends[-1] != records:
            raise self._error(f"{self.ends[-1]} records, the dataset has {records}")

    def __reduce__(self):
        return Encoded, (self.folder, len(self))  # worker processes map the files again

    def _error(self, message: str, remedy: str = "run launch.encode again") -> DataError:
        return DataError(message, file=self.folder, remedy=remedy)

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of a record, by the names of `decoders.diffusion.targets.Targets`.

        Raises:
          DataError: a record that could not be read when the folder was written.
        """
        number = bisect.bisect_right(self.ends, index)
        part, row = self.parts[number], index - (self.ends[number - 1] if number else 0)
        if not part["valid"][row]:
            raise DataError(
                "the record was left out when its dataset was encoded",
                file=self.folder,
                record=index,
                remedy="see what launch.encode said of it",
            )
        return {name: np.asarray(part[name][row]) for name in NAMES if name in part}
