# SPDX-License-Identifier: Apache-2.0
"""Mixtures: who gets which record, how often, after a crash, with bad records; and packed rows."""

import itertools
import json
import logging
import re
from collections import Counter

import jax
import numpy as np
import pytest

import data_pipelines.mixture as mixture_module
from data_pipelines.collate import CollateSpec
from data_pipelines.draws import generator
from data_pipelines.errors import DataError
from data_pipelines.example import Example
from data_pipelines.mixture import make_dataset, open_source, task_shapes
from data_pipelines.tokenizer import load_tokenizer
from data_pipelines.train_tokenizer import TINY_TOKENIZER
from vllm2_jax.batch import IGNORE

SPEC = CollateSpec(length=96, tile_size=28, tokens_per_tile=4, format="plain")


class Numbers:
    """Record i of a dataset says "<name> i"; the records in `bad` cannot be read."""

    def __init__(self, name, length, bad=()):
        self.name, self.length, self.bad = name, length, bad

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.bad:
            raise DataError(
                "the picture is broken", file=f"{self.name}.json", field="image", remedy="mend it"
            )
        words = "star " * 200 if index == 99 else f"{self.name} {index}"  # 99 is too long
        return Example(self.name, f"{self.name}.json", str(index), [("human", ""), ("gpt", words)])


def load_numbers(*, name="a", length=20, bad=()):
    return Numbers(name, length, bad)


class Dice(Numbers):
    """Record i says what it drew."""

    def __getitem__(self, index):
        words = f"{index} {generator(0, index).integers(10**6)}"
        return Example(self.name, f"{self.name}.json", str(index), [("human", ""), ("gpt", words)])


@pytest.fixture(autouse=True)
def numbers(monkeypatch):
    monkeypatch.setitem(mixture_module.DATASETS, "numbers", load_numbers)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TINY_TOKENIZER)


def task(rows=2, pack=False, **datasets):
    entries = {name: {"loader": "numbers", "name": name, **options} for name, options in datasets.items()}
    return {"rows": rows, "pack": pack, "datasets": entries}


def dataset(mixture, tokenizer, **options):
    return make_dataset(mixture, **{"tokenizer": tokenizer, "spec": SPEC, "groups": 1, "seed": 0, **options})


def read(element, tokenizer, name="t"):
    """The texts of a task's rows, segment by segment."""
    inputs = element["batch"][name].inputs
    texts = []
    for tokens, segments in zip(inputs.tokens.reshape(-1, 96), inputs.segments.reshape(-1, 96), strict=True):
        for segment in range(1, segments.max() + 1):
            texts.append(tokenizer.decode(tokens[segments == segment]).strip())
    return texts


def equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


SYNTHETIC = {
    "chat": {
        "rows": 2,
        "tiles": 1,
        "datasets": {
            "synthetic": {"weight": 3, "task": "chat"},
            "told": {"loader": "synthetic", "task": "caption"},
        },
    },
    "region": {
        "rows": 1,
        "tiles": 1,
        "regions": 2,
        "datasets": {"synthetic": {"task": "region", "turns": 2}},
    },
    "text": {"rows": 1, "pack": True, "datasets": {"synthetic": {"task": "text"}}},
}


def test_every_record_once_an_epoch_in_new_order(tokenizer):
    elements = itertools.islice(dataset({"t": task(a={"length": 12})}, tokenizer), 12)
    texts = [text for element in elements for text in read(element, tokenizer)]
    epochs = [texts[:12], texts[12:]]
    assert all(set(epoch) == {f"a {i}" for i in range(12)} for epoch in epochs)
    assert epochs[0] != epochs[1] != sorted(epochs[1])


def test_hosts_make_their_groups_of_the_same_batches(tokenizer):
    mixture = {"t": task(a={"length": 12, "bad": (3,)}, b={"weight": 2.0}), "u": task(rows=1, a={})}
    whole = list(itertools.islice(dataset(mixture, tokenizer, groups=6), 5))
    for hosts in ([[0, 1, 2], [3, 4, 5]], [[0, 3], [1, 4], [2, 5]]):  # a mesh may deal them in any way
        parts = [itertools.islice(dataset(mixture, tokenizer, groups=6, mine=mine), 5) for mine in hosts]
        for one, *parts_of_one in zip(whole, *parts, strict=True):
            for mine, part in zip(hosts, parts_of_one, strict=True):
                assert equal(part["batch"], jax.tree.map(lambda x, mine=mine: x[mine], one["batch"]))
            skipped = sum(part["counters"]["t/skipped"] for part in parts_of_one)
            assert skipped == one["counters"]["t/skipped"]
    assert sum(element["counters"]["t/skipped"] for element in whole) > 0


@pytest.mark.parametrize("packed", [False, True])
def test_resume_with_other_hosts_and_workers(tokenizer, packed):
    mixture = {"t": task(a={"length": 12, "bad": (3,)}), "u": task(rows=1, pack=packed, a={"length": 60})}
    options = {"groups": 4, "prefetch": 0}
    whole = list(itertools.islice(dataset(mixture, tokenizer, **options), 30))
    hosts = [iter(dataset(mixture, tokenizer, mine=mine, **options)) for mine in ([0, 1], [2, 3])]
    for host in hosts:
        for _ in range(15):
            next(host)
    states = [json.loads(json.dumps(host.get_state())) for host in hosts]
    assert states[0]["rows"] == {"t": 120, "u": 60}
    assert (states[0] == states[1]) != packed
    merged = states[0]
    if packed:
        merged["packed"]["u"] |= states[1]["packed"]["u"]
    for mine in ([0], [1, 2, 3], [0, 1, 2, 3]):
        resumed = iter(dataset(mixture, tokenizer, mine=mine, groups=4, threads=3, prefetch=3))
        resumed.set_state(merged)
        for element in whole[15:]:
            found = next(resumed)
            assert equal(found["batch"], jax.tree.map(lambda x, mine=mine: x[mine], element["batch"]))
        resumed.close()


def test_batches_of_another_size_go_on_where_the_last_ended(tokenizer):
    mixture = {"t": task(a={"length": 50})}
    first = iter(dataset(mixture, tokenizer, groups=3))
    texts = [text for element in itertools.islice(first, 4) for text in read(element, tokenizer)]
    second = iter(dataset(mixture, tokenizer, groups=13))
    second.set_state(first.get_state())
    texts += read(next(second), tokenizer)
    assert sorted(texts) == sorted(f"a {i}" for i in range(50))


def test_places_of_other_tasks_and_groups_are_named(tokenizer):
    text = {"t": task(pack=True, a={})}
    packed = iter(dataset(text, tokenizer, groups=2)).get_state()
    other = iter(dataset({"u": task(a={})}, tokenizer))
    with pytest.raises(
        ValueError, match=r"tasks t \(packed: t\), the mixture has u \(packed: none\): resume"
    ):
        other.set_state(packed)
    with pytest.raises(ValueError, match=r"one of the tasks none .*the mixture has u"):
        other.set_state({"next_index": 3})
    more = iter(dataset(text, tokenizer, groups=3))
    with pytest.raises(
        ValueError, match=r"'t' is packed, .*groups 0, 1 only, not for 0, 1, 2 of 3: .*groups"
    ):
        more.set_state(packed)


def test_weights(tokenizer):
    mixture = {"t": task(rows=4, a={"weight": 0.7}, b={"weight": 0.3})}
    elements = itertools.islice(dataset(mixture, tokenizer), 50)
    counts = Counter(text[0] for element in elements for text in read(element, tokenizer))
    assert counts == {"a": 140, "b": 60}


def test_streams_do_not_depend_on_each_other(tokenizer):
    alone = dataset({"t": task(a={})}, tokenizer)
    beside = dataset({"u": task(a={}), "t": task(a={})}, tokenizer)
    one, two = next(iter(alone)), next(iter(beside))
    assert read(one, tokenizer) == read(two, tokenizer) != read(two, tokenizer, "u")
    other = dataset({"t": task(a={})}, tokenizer, seed=1)
    assert read(next(iter(other)), tokenizer) != read(one, tokenizer)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_resume_is_exact(tokenizer, prefetch):
    spec = CollateSpec(length=128, tile_size=28, tokens_per_tile=4)
    made = make_dataset(SYNTHETIC, tokenizer=tokenizer, spec=spec, groups=2, seed=3, prefetch=prefetch)
    iterator = iter(made)
    for _ in range(7):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))  # as a checkpoint stores it
    expected = [next(iterator) for _ in range(9)]
    resumed = iter(
        make_dataset(SYNTHETIC, tokenizer=tokenizer, spec=spec, groups=2, seed=3, prefetch=prefetch)
    )
    resumed.set_state(state)
    assert all(equal(next(resumed), element) for element in expected)


def test_bad_records_are_replaced_counted_and_named_once(tokenizer, caplog):
    mixture = {"t": task(a={"length": 12, "bad": (3, 5)}, b={"length": 100})}
    iterator = iter(dataset(mixture, tokenizer, prefetch=0))
    texts, skipped, states, elements = [], 0, [], []
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            states.append(iterator.get_state())
            elements.append(next(iterator))
            texts += read(elements[-1], tokenizer)
            skipped += elements[-1]["counters"]["t/skipped"]
    counts = Counter(text[0] for text in texts)
    assert counts == {"a": 100, "b": 100}  # the dataset keeps its weight
    assert {text for text in texts if text[0] == "a"} == {f"a {i}" for i in range(12) if i not in (3, 5)}
    assert all(8 <= count <= 15 for text, count in Counter(texts).items() if text[0] == "a")
    # 100 rows of `a` are eight epochs of twelve, two of them bad, and a third of a ninth. One of `b` is
    # an epoch, in which record 99 is too long. A stand-in may be bad itself.
    assert 16 + 1 <= skipped <= 2 * 18 + 1
    stood_in = Counter(text for text in texts[:24] if text[0] == "a")  # one epoch: ten good ones
    assert len(stood_in) == 10 and max(stood_in.values()) <= 3
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    assert "a.json, record 3, field 'image': the picture is broken. Remedy: mend it" in " ".join(messages)
    assert "b.json, record 99" in " ".join(messages)
    # A state from before a bad record leads to the same rows and the same count.
    for at in (0, 13, 57):
        resumed = iter(dataset(mixture, tokenizer, prefetch=0))
        resumed.set_state(states[at])
        assert all(equal(next(resumed), element) for element in elements[at : at + 20])


def test_a_dataset_without_a_good_record_ends_the_run(tokenizer):
    iterator = iter(dataset({"t": task(a={"length": 6, "bad": range(6)})}, tokenizer, prefetch=0))
    with pytest.raises(DataError, match=r"6 records in a row of the dataset 't/a'.*the picture is broken"):
        next(iterator)


def test_a_question_that_nobody_answers_is_left_out(tokenizer, monkeypatch):
    said = [("human", "red?"), ("gpt", "star"), ("human", "circle?")]

    def answered(turns):
        record = lambda self, index: Example("a", "a.json", str(index), turns)  # noqa: E731
        monkeypatch.setattr(Numbers, "__getitem__", record)
        return next(iter(dataset({"t": task(a={})}, tokenizer, prefetch=0)))["batch"]["t"]

    left_out, never_there = answered(said), answered(said[:2])
    assert equal(left_out, never_there) and (left_out.labels != IGNORE).any()
    with pytest.raises(DataError, match="there is no answer to learn from"):
        answered(said[:1])


def test_other_errors_are_not_swallowed(tokenizer, monkeypatch):
    monkeypatch.setattr(Numbers, "__getitem__", lambda self, index: 1 / 0)
    with pytest.raises(ZeroDivisionError) as found:
        next(iter(dataset({"t": task(a={})}, tokenizer)))
    notes = [note for note in found.value.__notes__ if re.fullmatch(r"record \d+ of the dataset 't/a'", note)]
    assert len(notes) == 1


def test_packing(tokenizer):
    mixture = {"t": task(rows=2, pack=True, a={"length": 300, "bad": (7,)})}
    iterator = iter(dataset(mixture, tokenizer, groups=2, prefetch=0))
    elements, states = [], []
    for _ in range(14):
        states.append(iterator.get_state())
        elements.append(next(iterator))
    texts = [text for element in elements for text in read(element, tokenizer)]
    assert len(texts) > 14 * 4 * 8  # of 4 rows a batch, each holds more than eight
    counts = Counter(texts)
    assert max(counts.values()) - min(counts.values()) <= 2 and len(counts) == 298  # without 7 and 99
    rows = elements[0]["batch"]["t"]
    segments, positions = rows.inputs.segments, rows.inputs.positions
    begins = np.diff(segments, axis=-1, prepend=0) > 0
    assert np.all(positions[begins] == 0) and np.all(rows.labels[begins] == IGNORE)
    inside = ~begins & (segments > 0)
    assert np.all(np.diff(positions, axis=-1)[inside[..., 1:]] == 1)
    assert np.all(rows.inputs.tokens[segments == 0] == tokenizer.ids.padding)
    assert np.mean(segments > 0) > 0.9
    for at in (1, 6, 11):  # in the middle of the rows that were packed together
        resumed = iter(dataset(mixture, tokenizer, groups=2, prefetch=0))
        resumed.set_state(json.loads(json.dumps(states[at])))
        assert all(equal(next(resumed), element) for element in elements[at : at + 3])


def test_worker_processes(tokenizer):
    mixture = {
        "chat": {"rows": 2, "tiles": 1, "datasets": {"synthetic": {"task": "chat", "length": 16}}},
        "text": {"rows": 1, "pack": True, "datasets": {"synthetic": {"task": "text"}}},
    }
    spec = CollateSpec(length=96, tile_size=28, tokens_per_tile=4)

    def iterator(workers):
        options = {"tokenizer": tokenizer, "spec": spec, "groups": 1, "seed": 0}
        return iter(make_dataset(mixture, **options, workers=workers))

    alone = iterator(0)
    elements = [next(alone) for _ in range(12)]
    first = iterator(2)
    assert all(equal(next(first), element) for element in elements[:8])  # the same in the same order
    state = first.get_state()
    first.close()
    resumed = iterator(3)
    resumed.set_state(state)
    assert all(equal(next(resumed), element) for element in elements[8:])
    resumed.close()


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({}, "has no task"),
        ({"t": {"rows": 1, "tile": 1, "datasets": {"a": {}}}}, r"task 't' .*unknown keys \['tile'\]"),
        ({"t": {"datasets": {"a": {}}}}, "task 't' .*needs `rows`"),
        ({"t": {"rows": 1, "datasets": {}}}, "task 't' .*needs `rows` and `datasets`"),
        (
            {"t": {"rows": 1, "decoder": "oracle", "links": {"pose": 17}, "datasets": {"a": {}}}},
            "task 't' .*'oracle' has no function",
        ),
        (
            {
                task: {
                    "rows": 1,
                    "decoder": "unipose",
                    "links": {"det": classes, "pose": 17},
                    "datasets": {"a": {}},
                }
                for task, classes in (("t", 1), ("u", 2))
            },
            r"tasks 't' and 'u' .* several kinds, .*'det': 1.* and .*'det': 2.*: give both the same",
        ),
    ],
)
def test_impossible_mixtures(mixture, message):
    with pytest.raises(ValueError, match=message):
        task_shapes(mixture)


@pytest.mark.parametrize(
    ("decoder", "link", "first", "second", "wrong"),
    [
        ("grounding_dino", "det", {"size": 1344}, {"size": 672, "stride": 2}, "stride 4 and 2"),
        ("stable_diffusion", "gen", {"size": 512}, {"size": 256}, "size 512 and 256"),
        ("instruct_pix2pix", "edit", {"caption": 77}, {"caption": 20}, "caption 77 and 20"),
    ],
)
def test_capacities_that_tasks_of_a_decoder_share(decoder, link, first, second, wrong):
    def shapes(**capacities):
        common = {"rows": 1, "decoder": decoder, "links": {link: 1}, "datasets": {"a": {}}}
        return task_shapes({task: {**common, "capacities": own} for task, own in capacities.items()})

    assert shapes(t=first, u={**first, "objects": 7})
    with pytest.raises(ValueError, match=f"tasks 't' and 'u' .* with {wrong}: give both the same"):
        shapes(t=first, u=second)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("coco", {}, "dataset 'coco': unknown loader 'coco', there are captions, .*synthetic"),
        ("synthetic", {"task": "chat", "taks": 1}, r"'synthetic' does not take \['taks'\]; it takes task"),
        ("numbers", {"weight": 0}, "weight has to be positive"),
        ("numbers", {"length": 0}, "has no records"),
    ],
)
def test_impossible_datasets(name, options, message):
    with pytest.raises(ValueError, match=message):
        open_source(name, options, spec=SPEC, seed=0)


def test_impossible_requests(tokenizer):
    for mine in ([], [2], [-1]):
        with pytest.raises(ValueError, match=r"cannot make the groups \[.*\] of 2"):
            dataset({"t": task(a={})}, tokenizer, groups=2, mine=mine)


@pytest.mark.parametrize("hosts, workers", [(1, 0), (2, 0), (1, 2)])
def test_records_draw_anew_in_every_epoch(tokenizer, monkeypatch, hosts, workers):
    monkeypatch.setitem(mixture_module.DATASETS, "dice", lambda: Dice("dice", 8))
    mixture = {"t": {"rows": 4, "datasets": {"dice": {}}}}
    drawn = []
    for host in range(hosts):
        options = {"groups": 2, "mine": range(host * 2 // hosts, (host + 1) * 2 // hosts), "workers": workers}
        stream, again = (dataset(mixture, tokenizer, **options) for _ in range(2))
        elements = list(itertools.islice(stream, 3))  # three epochs over all hosts
        assert all(equal(a, b) for a, b in zip(elements, again, strict=False))
        drawn += [text for element in elements for text in read(element, tokenizer)]
    assert Counter(text.split()[0] for text in drawn) == {str(i): 3 for i in range(8)}
    assert len(set(drawn)) == 24
