# SPDX-License-Identifier: Apache-2.0
"""Rewrites the golden text files: `python -m tests.golden.update`. Review the diff before you commit it."""

from tests.golden.reports import FOLDER, REPORTS

if __name__ == "__main__":
    for name, make in REPORTS.items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make(), encoding="utf-8")
        print(name)
