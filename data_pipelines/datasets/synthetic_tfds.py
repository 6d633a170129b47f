# SPDX-License-Identifier: Apache-2.0
"""Builds the synthetic dataset in TFDS format, as array records that `datasets/tfds.py` reads.

    pip install 'vllm2-jax[tfds]'     # building needs TensorFlow, reading does not
    python -m data_pipelines.datasets.synthetic_tfds --task chat --train 10000 --heldout 1000 --out DIR

It is also the pattern for other TFDS datasets of ours: a record has `id`, `image`, `conversation` (a sequence
of `role` and `text`) and `regions` (masks in the frame of the image, stored as pictures: 255 inside).
"""

import argparse
import importlib.util
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.datasets.synthetic import SPLITS, load
from data_pipelines.errors import DataError
from data_pipelines.synthetic.scene import LEVELS

# Tasks whose examples are a picture, a conversation and regions; the others need their decoder's targets too.
TASKS = ("chat", "caption", "region")


class SyntheticConfig(tfds.core.BuilderConfig):
    """What to build: `task` and `level` as in `datasets.synthetic.load`, pictures, records."""

    def __init__(self, task: str, level: str, size: int, records: dict[str, int], **options):
        super().__init__(name=f"{task}_{level}", **options)
        self.task, self.level, self.size, self.records = task, level, size, records


class Vllm2Synthetic(tfds.core.GeneratorBasedBuilder):
    """Conversations about scenes of shapes, people and signs."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        picture = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        features = {
            "id": tfds.features.Text(),
            "image": picture,
            "conversation": tfds.features.Sequence(
                {"role": tfds.features.Text(), "text": tfds.features.Text()}
            ),
            "regions": tfds.features.Sequence(
                tfds.features.Image(shape=(None, None, 1), encoding_format="png")
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self, description=self.__doc__, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in self.builder_config.records}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        config = self.builder_config
        source = load(task=config.task, level=config.level, tile_size=config.size, split=split)
        for index in range(config.records[split]):
            _, view, built = source.draw(index)
            turns = [(role, text) for role, text in built.turns]
            turns[0] = (turns[0][0], f"<image>\n{turns[0][1]}")
            masks = () if built.regions is None else built.regions[..., None].astype(np.uint8) * 255
            yield (
                str(index),
                {
                    "id": f"{split}/{index}",
                    "image": view.image,
                    "conversation": [{"role": role, "text": text} for role, text in turns],
                    "regions": list(masks),
                },
            )


def build(
    out: str, *, task: str = "chat", level: str = "easy", size: int = 224, train: int, heldout: int
) -> str:
    """Writes the dataset under `out` and returns its folder, which `datasets.tfds.load` takes.

    Args:
      out: the TFDS data directory.
      task: one of `TASKS`.
      level: a key of `scene.LEVELS`.
      size: shorter side of the pictures in pixels.
      train, heldout: records of the two splits.

    Raises:
      DataError: TensorFlow is missing, the task has no TFDS form, or the dataset is there already: TFDS would
        keep it, whatever its pictures and records are.
    """
    if task not in TASKS:
        raise DataError(
            f"no TFDS form of the task {task!r}", field="task", remedy=f"use one of {', '.join(TASKS)}"
        )
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(
            "building a TFDS dataset needs TensorFlow, reading one does not",
            remedy="pip install 'vllm2-jax[tfds]', which brings it",
        )
    records = dict(zip(SPLITS, (train, heldout), strict=True))
    config = SyntheticConfig(task, level, size, {name: n for name, n in records.items() if n})
    builder = Vllm2Synthetic(data_dir=out, config=config, file_format="array_record")
    if builder.data_path.exists():
        raise DataError(
            f"there is a dataset {config.name} already",
            file=builder.data_dir,
            remedy="remove it or choose another folder",
        )
    builder.download_and_prepare()
    return str(builder.data_dir)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", required=True, help="TFDS data directory")
    parser.add_argument("--task", default="chat", choices=TASKS)
    parser.add_argument("--level", default="easy", choices=sorted(LEVELS))
    parser.add_argument("--size", type=int, default=224, help="shorter side of the pictures in pixels")
    parser.add_argument("--train", type=int, default=10_000, help="records of the split train")
    parser.add_argument("--heldout", type=int, default=1000, help="records of the split heldout")
    print("wrote", build(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
