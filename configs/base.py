# SPDX-License-Identifier: Apache-2.0
"""Every key of a run, once, with its unit and meaning. An experiment imports `get_config` and changes a few.

    python -m launch.train --config configs/base.py:7b --workdir runs/mine --config.optimizer.peak=1e-4

The part behind the colon is a model size, a key of `configs.sizes.MODELS` ("tiny" if left out).
"""

import ml_collections

from configs.groups import GROUPS
from configs.mixtures import HELDOUT, MIXTURES
from configs.sizes import MODELS


def get_config(size: str = "") -> ml_collections.ConfigDict:
    """The defaults at one model size, locked: a key that is not here raises and lists near ones."""
    size = size or "tiny"
    if size not in MODELS:
        raise ValueError(f"unknown model size {size!r}; choose one of {', '.join(MODELS)}")
    config = ml_collections.ConfigDict()

    config.seed = 42  # of initialisation, data order and everything random in a step
    config.steps = 1000  # updates of the whole run

    config.model = MODELS[size]  # sizes, see `configs/sizes.py`
    config.dtype = "bfloat16"  # of products and activations; parameters are float32
    config.frozen_dtype = "bfloat16"  # frozen parameters are stored in; "float32" leaves them as they are
    config.attention = "xla"  # "xla" anywhere, "splash" on TPU
    config.unroll = 1  # layers of the language model in one turn of their loop; on a CPU all are faster
    config.query_std = 1.0  # size of fresh link queries; 0.02 beside a language model from nothing
    config.named_links = False  # queries learn to spell the name before their link; for models from nothing
    config.loss_chunk = 0  # columns a row whose logits exist at once, only of labels; 0: all of all columns
    config.remat = (
        ml_collections.ConfigDict()
    )  # what the backward pass finds stored: keys of `nn.stack.REMAT`
    config.remat.vision = "none"
    config.remat.llm = "none"

    config.data = ml_collections.ConfigDict()
    config.data.mixture = MIXTURES["synthetic"]  # tasks, rows, datasets: see `configs/mixtures.py`
    config.data.root = ""  # folder that `{root}` in the mixture's paths stands for
    config.data.tokenizer = ""  # a Hugging Face folder or a sentencepiece file; "": the small one that ships
    config.data.format = "v1"  # conversation: v1 | bare | plain | internlm2_chat
    config.data.groups = 8  # groups of rows in a batch, over all hosts; a multiple of the batch shards
    config.data.length = 128  # columns of a row, where its task in the mixture does not say `length`
    config.data.truncate = (
        False  # cut rows that are longer at their end; otherwise they are skipped and counted
    )
    config.data.workers = 0  # processes that make batches, on each host; 0: the one that trains
    config.data.threads = 4  # threads that read, in each process
    config.data.prefetch = 2  # batches made ahead, on each host or by each worker process
    config.data.timeout = 600.0  # seconds without a batch that end the run, warned of ten times; 0: never

    config.eval = ml_collections.ConfigDict()  # questions with known answers, see `launch/heldout.py`
    config.eval.tasks = ml_collections.ConfigDict(HELDOUT["synthetic"])  # as a mixture, without rows
    config.eval.examples = 200  # records of each dataset that `launch.evaluate` asks about; 0: all
    config.eval.every = 0  # steps between short evaluations during training; 0: none
    config.eval.quick = 32  # records of each dataset in a short one
    config.eval.rows = 32  # prompts answered at once, on each host
    config.eval.pictures = 8  # pictures that a decoder looks at at once, on each host
    config.eval.max_new = 48  # columns of an answer, link queries included

    config.optimizer = ml_collections.ConfigDict()  # AdamW, see `train.optimizer.OptimizerConfig`
    config.optimizer.groups = GROUPS["all"]  # what is trained: (regex, multiplier or None for frozen)
    config.optimizer.peak = 1e-3  # highest learning rate
    config.optimizer.schedule = "cosine"  # after the warm-up: cosine | linear (both to 0) | constant
    config.optimizer.warmup_ratio = 0.03  # part of `steps`
    config.optimizer.warmup_steps = -1  # updates; -1: by the ratio
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.0  # times the learning rate; never on biases and scales of norms
    config.optimizer.no_decay = r"(^|/)(bias|scale)$"  # regex of the parameters without decay
    config.optimizer.muon = ""  # regex of the kernels that Muon updates instead of Adam
    config.optimizer.clip_norm = 1.0  # upper bound of the global gradient norm; 0: none

    config.step = ml_collections.ConfigDict()
    config.step.schedule = "mixed"  # "by_task" walks the tasks one after the other: less memory, same update
    config.step.accumulate = 1  # slices of the groups walked one after the other: less memory, same update

    config.sharding = ml_collections.ConfigDict()
    config.sharding.strategy = "fsdp"  # a key of `sharding.strategies.STRATEGIES`
    config.sharding.mesh = ""  # sizes that differ from the strategy's: "fsdp=4,tensor=2"
    config.sharding.devices = ""  # "": all that are attached; "cpu:8": the first 8 host devices

    config.init = ml_collections.ConfigDict()  # a run found in the workdir goes on before any of these
    config.init.resume = ""  # workdir of another run to continue: state and position in the data
    config.init.weights = ""  # workdir or converted weights to take parameters from
    config.init.fresh = ""  # regex of parameters those may lack

    config.parts = ml_collections.ConfigDict()  # for `launch.assemble`: part of the model -> "kind:folder"

    config.log_every = 10  # steps between two lines of `metrics.jsonl`
    config.save_every = 500  # steps between two checkpoints
    config.keep = 2  # checkpoints that stay
    config.bad_steps = 3  # steps in a row that may be skipped as not finite before the run stops
    config.profile_first = 10  # first step that the profiler records
    config.profile_steps = 0  # steps it records, to `profile/` in the workdir; 0: none
    return config.lock()
