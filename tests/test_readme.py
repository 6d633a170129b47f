# SPDX-License-Identifier: Apache-2.0
"""The README's answers to "where is ..." exist, and its commands name real modules and targets."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_where_is_table():
    table = README.split("## Where is")[1].split("\n## ")[0]
    places = re.findall(r"\| `([^`]+)` \|", table)
    assert len(places) >= 15
    assert [place for place in places if not (ROOT / place).is_file()] == []


def test_links_and_commands():
    linked = re.findall(r"\]\(([^)#]+)\)", README)
    modules = re.findall(r"python -m ([\w.]+)", README)
    configs = re.findall(r"--config (configs/\S+)", README)
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert linked and modules and configs and targets
    files = [*linked, *configs, *(module.replace(".", "/") for module in modules)]
    missing = [name for name in files if not (ROOT / name).exists() and not (ROOT / f"{name}.py").is_file()]
    assert missing == []
    makefile = (ROOT / "Makefile").read_text()
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []
