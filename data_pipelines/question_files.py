# SPDX-License-Identifier: Apache-2.0
"""Files of benchmarks that are answered in words, in the forms that the official evaluation reads.

    .jsonl, .json   VQAv2, TextVQA, GQA, DocVQA, ScienceQA, POPE, SEED, ...: one object a question
    .tsv            MMBench: options in columns A to E, pictures as base64
    a folder        MME: a file for each task, whose lines are picture, question and answer

True answers stand in the records, or apart: VQA's and DocVQA's annotations, POPE's labels.
"""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.records import need, read_json, read_lines, read_records, read_text

LETTERS = "ABCDE"
_TURNED = 1_000_000  # MMBench numbers a question whose options are turned round by its own number and this


@dataclasses.dataclass(frozen=True)
class Asked:
    """One question.

    Attributes:
      record: its id, for messages.
      image: path of the picture as the file gives it; or
      encoded: the picture in base64.
      question: the text; and
      hint: what stands before it.
      options: letter -> text, where the answer is one of several.
      answers: all that count; a letter where there are options.
      kind: what is asked for; empty where the file does not say.
      group: what questions share that a metric looks at together.
    """

    record: str
    question: str
    answers: tuple[str, ...]
    image: str = ""
    encoded: str = ""
    hint: str = ""
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kind: str = ""
    group: str = ""


def read_questions(annotations: str, answers: str = "") -> list[Asked]:
    """The questions of a file or folder, with the true answers of `answers` if they lie apart.

    Raises:
      DataError: a missing or malformed file, a record without its fields, or without an answer.
    """
    path = pathlib.Path(annotations)
    if answers and (path.is_dir() or path.suffix == ".tsv"):
        raise DataError("has its answers in it", file=path, remedy=f"leave out answers={answers}")
    if path.is_dir():
        return [asked for file in sorted(path.glob("*.txt")) for asked in _mme(file)]
    if path.suffix == ".tsv":
        return _mmbench(path)
    records = read_records(path)
    apart = _answers_apart(answers, records, str(path)) if answers else [None] * len(records)
    return [
        _question(record, given, file=str(path), index=number)
        for number, (record, given) in enumerate(zip(records, apart, strict=True))
    ]


def _question(record: dict, given: tuple[str, ...] | None, *, file: str, index: int) -> Asked:
    """One object of a list; `given` are its answers if they lie apart."""
    place: dict[str, Any] = {"file": file, "index": index}
    choices = need(record, "choices", list, **place) if "choices" in record else []
    if len(choices) > len(LETTERS):
        raise DataError(
            f"{len(choices)} choices",
            file=file,
            record=index,
            field="choices",
            remedy=f"give up to {len(LETTERS)}",
        )
    options = dict(zip(LETTERS, map(str, choices), strict=False))
    return Asked(
        record=str(record.get("question_id", index)),
        image=need(record, "image", str, **place),
        question=need(record, "question" if "question" in record else "text", str, **place),
        hint=str(record.get("hint") or ""),
        options=options,
        answers=_answers(record, options, **place) if given is None else given,
        kind=str(record.get("category") or ""),
    )


def _answers(record: dict, options: Mapping[str, str], *, file: str, index: int) -> tuple[str, ...]:
    """What `answer` says: a text, several, or the number of an option, from 0."""
    answer = need(record, "answer", (str, int, float, list), file=file, index=index)
    if options and isinstance(answer, int):
        if not 0 <= answer < len(options):
            raise DataError(
                f"the answer is option {answer} of {len(options)}",
                file=file,
                record=index,
                field="answer",
                remedy="count from 0",
            )
        return (LETTERS[answer],)
    found = tuple(map(str, answer)) if isinstance(answer, list) else (str(answer),)
    if not found:
        raise DataError("no answer", file=file, record=index, field="answer", remedy="drop the record")
    return found


def _answers_apart(path: str, records: Sequence[dict], file: str) -> list[tuple[str, ...]]:
    """The answers to the records of `file`, from annotations by number or POPE's labels by place."""
    if pathlib.Path(path).is_dir():
        return _pope_labels(path, records, file)
    content = read_json(path)
    forms = {"annotations": "question_id", "data": "questionId"}
    form = next((form for form in forms if isinstance(content, dict) and form in content), "")
    entries = content[form] if form else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(
            "neither annotations nor data in it",
            file=path,
            remedy="give the annotations of VQA or of DocVQA",
        )
    found: dict[str, tuple[str, ...]] = {}
    for place, entry in enumerate(entries):
        number = str(need(entry, forms[form], (int, str), file=path, index=place))
        found[number] = tuple(
            str(need(one, "answer", (str, int, float), file=path, index=place))
            if isinstance(one, dict)
            else str(one)
            for one in need(entry, "answers", list, file=path, index=place)
        )
    numbers = [
        str(need(record, "question_id", (int, str), file=file, index=i)) for i, record in enumerate(records)
    ]
    if missing := [number for number in numbers if not found.get(number)]:
        raise DataError(
            f"no answers to {len(missing)} of {len(numbers)} questions, such as {missing[0]}",
            file=path,
            field="answers",
            remedy=f"give the annotations that belong to {file}",
        )
    return [found[number] for number in numbers]


def _pope_labels(folder: str, records: Sequence[dict], file: str) -> list[tuple[str, ...]]:
    """The n-th question of a category has the n-th label of `coco_pope_<category>.json`."""
    labels: dict[str, list[tuple[str, Any]]] = {}
    found: list[tuple[str, ...]] = []
    for index, record in enumerate(records):
        kind = need(record, "category", str, file=file, index=index)
        path = pathlib.Path(folder) / f"coco_pope_{kind}.json"
        left = labels.setdefault(kind, read_lines(path)[::-1] if kind not in labels else [])
        if not left:
            raise DataError(f"fewer labels than {file} has questions", file=path, remedy="fetch both again")
        line, label = left.pop()
        said = need(label, "label", str, file=path, index=line)
        if label.get("image", record.get("image")) != record.get("image"):
            raise DataError(
                f"is for {label['image']}, question {index} of {file} for {record.get('image')}",
                file=path,
                record=line,
                field="image",
                remedy="the two files do not belong together: fetch both again",
            )
        found.append((said,))
    return found


def _mmbench(path: pathlib.Path) -> list[Asked]:
    csv.field_size_limit(2**30)  # a picture is one field
    rows = csv.DictReader(io.StringIO(read_text(path)), delimiter="\t")
    missing = {"index", "question", "A", "B", "image", "answer"} - set(rows.fieldnames or ())
    if missing:
        raise DataError(
            f"no columns {', '.join(sorted(missing))}",
            file=path,
            remedy="give a file of MMBench with answers; those of a test set are with its server alone",
        )
    found = []
    for number, row in enumerate(rows, 1):
        options = {letter: row[letter] for letter in LETTERS if row.get(letter)}
        if not (row["index"].isdigit() and row["question"] and row["image"] and row["answer"] in options):
            raise DataError(
                f"index {row['index']!r:.20}, question {row['question']!r:.30}, answer {row['answer']!r:.9}; "
                "wanted are a number, a question, a picture and the letter of an option",
                file=path,
                record=f"row {number}",
                remedy="fetch the file again, or drop the row",
            )
        found.append(
            Asked(
                record=row["index"],
                encoded=row["image"],
                question=row["question"],
                hint=row.get("hint") or "",
                options=options,
                answers=(row["answer"],),
                kind=row.get("category") or "",
                # What a question shares with itself when its options are turned round.
                group=str(int(row["index"]) % _TURNED),
            )
        )
    return found


def _mme(path: pathlib.Path) -> list[Asked]:
    """Lines of picture, question, answer; the pictures of a task lie in a folder of its name."""
    found = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        parts = line.strip().split("\t")
        if len(parts) != 3:
            raise DataError(
                f"{len(parts)} fields",
                file=path,
                record=f"line {number}",
                remedy="a line is picture, question and answer with tabs between them",
            )
        image, question, answer = parts
        found.append(
            Asked(
                record=f"{path.stem} {number}",
                image=f"{path.stem}/{image}",
                question=question,
                answers=(answer,),
                kind=path.stem,
                group=image,
            )
        )
    return found
