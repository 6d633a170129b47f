# SPDX-License-Identifier: Apache-2.0
"""Puts a model to begin training with together, from `config.parts`.

    python -m launch.assemble --config configs/stage1_pretrain_7b.py --root PUBLIC --to start

Prints what no part has: the flag that lets these parameters begin random. Exits with 2 and a list of all
misfits if a part does not fit the model.
"""

import sys

from absl import app, flags
from ml_collections import config_flags
from tqdm import tqdm

from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from launch import exits
from launch.build import Config, model_config
from launch.logs import hush_orbax
from vllm2_jax.convert.rules import ConversionError
from vllm2_jax.train.assemble import Assembled, assemble
from vllm2_jax.train.streaming import weights_folder


def open_parts(config: Config, root: str, dtype: str | None = None) -> Assembled:
    """The parts of a config, compared with its model."""
    parts = config.parts.to_dict()
    if not parts:
        raise ConversionError("config.parts is empty; give parts of the model as {part: 'kind:folder'}")
    tokenizer = load_tokenizer(config.data.tokenizer or TINY_TOKENIZER)
    return assemble(model_config(config, tokenizer), parts, root, dtype)


def main(argv: list[str]) -> None:
    """Reads the flags and assembles."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; config keys are set as --config.key=value")
    hush_orbax()
    try:
        made = open_parts(flags.FLAGS.config, flags.FLAGS.root, flags.FLAGS.dtype)
        total = sum(leaf.size for leaf in made.leaves.values())
        with tqdm(total=total, unit=" parameters", unit_scale=True) as bar:
            with weights_folder(flags.FLAGS.to, made.leaves, bar.update):
                pass
    except (ConversionError, ValueError) as error:
        print(f"launch.assemble: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"train with --config.init.weights={flags.FLAGS.to} --config.init.fresh='{made.fresh_pattern()}'")


def define_flags() -> None:
    """Not when imported: other programs have flags of the same names."""
    config_flags.DEFINE_config_file("config", None, "A file with get_config().")
    flags.DEFINE_string("root", ".", "Folder that the folders in config.parts are relative to.")
    flags.DEFINE_string("to", None, "Folder to write; must not exist.", required=True)
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of all leaves; default: as stored.")


if __name__ == "__main__":
    define_flags()
    flags.mark_flag_as_required("config")
    exits.run(main)
