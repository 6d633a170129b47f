# SPDX-License-Identifier: Apache-2.0
"""The error of the data side."""

import pickle

from data_pipelines.errors import DataError


def test_message_names_everything_in_one_line():
    error = DataError("is missing", file="a/b.json", record=3, field="image", remedy="add it")
    assert str(error) == "a/b.json, record 3, field 'image': is missing. Remedy: add it"
    assert str(DataError("is missing")) == "is missing"


def test_record_zero_is_named():
    assert "record 0" in str(DataError("is missing", record=0))


def test_at_fills_only_what_is_unknown():
    error = DataError("is missing", file="mask.png", remedy="add it").at(file="b.json", record=7, field="x")
    assert (error.file, error.record, error.field, error.remedy) == ("mask.png", "7", "x", "add it")


def test_survives_another_process():
    error = DataError("is missing", file="b.json", record=3, field="image", remedy="add it")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, DataError) and str(again) == str(error) and again.field == "image"
