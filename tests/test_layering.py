# SPDX-License-Identifier: Apache-2.0
"""The picture in CONTRIBUTING stays true: who imports whom, and how little of NNX is used."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]

BASE = {"ops", "nn", "batch", "tokens"}
MIDDLE = {"vision", "llm", "decoders", "links"}
OUTER = {"convert", "sharding", "train", "evals"}

# Part of vllm2_jax -> parts it may import. Itself is always allowed.
ALLOWED = {
    **{part: BASE for part in BASE},
    "vision": BASE,
    "llm": BASE,
    "links": BASE,
    "decoders": BASE | {"vision"},  # a decoder may share the Swin backbone, never the language model
    "model": BASE | MIDDLE,
    "sharding": BASE,
    "convert": BASE | MIDDLE | {"model"},
    "train": BASE | MIDDLE | OUTER | {"model"},
    "pretrained": BASE | MIDDLE | OUTER | {"model"},
    "evals": BASE | MIDDLE | {"model"},
}

NNX = {
    *("Module", "Param", "Variable", "Rngs", "Linear", "Einsum", "Conv", "Embed"),
    *("List", "Dict", "split", "merge", "state", "to_flat_state", "from_flat_state", "All"),
    *("Not", "State", "GraphDef", "initializers", "filterlib"),
}


def sources(*folders: str) -> list[pathlib.Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: pathlib.Path) -> set[str]:
    """Dotted names of every module, or member of one, that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_import_direction():
    wrong = []
    for path in sources("vllm2_jax"):
        part = path.relative_to(ROOT / "vllm2_jax").parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for name in imports(path):
            head, _, rest = name.partition(".")
            if head in ("data_pipelines", "configs", "launch", "tests"):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
            if head == "vllm2_jax" and rest.split(".")[0] not in ALLOWED[part] | {part}:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_data_pipelines_know_only_batch_and_tokens():
    wrong = []
    for path in sources("data_pipelines"):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "vllm2_jax" and parts[1] not in ("batch", "tokens"):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
            if parts[0] in ("launch", "configs", "tests", "jax", "torch"):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_configs_import_nothing_of_ours():
    ours = ("vllm2_jax", "data_pipelines", "launch", "tests")
    wrong = [
        f"{path.name} imports {name}"
        for path in sources("configs")
        for name in imports(path)
        if name.split(".")[0] in ours
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", sources("vllm2_jax", "launch"), ids=lambda p: str(p.relative_to(ROOT)))
def test_small_part_of_nnx(path):
    used = set(re.findall(r"\bnnx\.(\w+)", path.read_text()))
    assert used <= NNX, f"{sorted(used - NNX)} is outside the part of NNX that is used here"


@pytest.mark.parametrize(
    "path", sources("vllm2_jax", "data_pipelines", "configs", "launch", "tests"), ids=lambda p: str(p.name)
)
def test_licence_line(path):
    assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0")
