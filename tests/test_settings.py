"""Settings are read as data and checked where they are declared: what is wrong is named, what is right comes back."""

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ad_hf.settings import (
    check_settings,
    descriptions,
    dump_yaml,
    make_section,
    parse_yaml,
    read_json,
    read_yaml,
    setting,
    with_settings,
)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
BOMB = "\n".join(
    ["a: &a [x]", *(f"{one}: &{one} [{', '.join([f'*{two}'] * 9)}]" for two, one in zip("abcdefg", "bcdefgh"))]
)


@given(st.dictionaries(st.text(), PLAIN, max_size=4))
def test_yaml_comes_back_as_it_was_written(data):
    assert parse_yaml(dump_yaml(data), "file.yaml") == data


@pytest.mark.parametrize("text", ["3e-4", "1E5", "2020-01-01", "on", "null", "0x1F", "1_000", "'", "~", "=", "<<"])
def test_text_that_looks_like_something_else_stays_text(text):
    assert parse_yaml(dump_yaml({"key": [text], text: 1}), "file.yaml") == {"key": [text], text: 1}


def test_numbers_are_read_as_people_write_them():
    assert parse_yaml("[3e-4, 1E5, -2.5e+3, .5, 7, '7', 2020-01-01]", "", list) == [
        *(0.0003, 100000.0, -2500.0, 0.5, 7, "7", "2020-01-01"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "'a' stands there twice"),
        ("a: {b: {c: 1, c: 2}}", "'c' stands there twice"),
        ("a: &x [*x]", "an alias contains itself"),
        ("a: &x {b: {c: *x}}", "an alias contains itself"),
        (BOMB, "its aliases stand for too much"),
        ("a: {1: 2}", "the key 1 is not text"),
        ("on: 2", "the key True is not text"),
        ("a: !!binary aGk=", "binary"),
        ("a: !!set {b}", "set"),
        ("a: !!timestamp 2020-01-01", "timestamp"),
        ("a: !!python/object/apply:os.system [true]", "python/object"),
        ("a: !mine 3", "!mine"),
        ("a: !!int b", "invalid literal"),
        ("a: [", "expected the node content"),
        ("a: 'b", "unexpected end"),
        ("a: 1\n--- \nb: 2", "expected a single document"),
        ("[" * 10_000, "nests too deep"),
        ("- a", "must hold a mapping, got \\['a'\\]"),
        ("", "must hold a mapping, got None"),
        ("\x00", "special characters"),
    ],
)
def test_yaml_that_settings_are_not_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"file.yaml.*{message}"):
        read_yaml(path)


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_files_that_cannot_be_read_are_named(tmp_path, read):
    path = tmp_path / "file"
    for content, message in ((b"\xff\xfe", "file is not UTF-8"), (b"[1]", "file must hold a mapping")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read(path)
    os.mkfifo(tmp_path / "pipe")
    for missing in (tmp_path / "pipe", tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileNotFoundError, match=str(missing)):
            read(missing)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ("[" * 10**5, "nests too deep"), ("3", "must hold a mapping, got 3")]
)
def test_json_that_is_wrong_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(ValueError, match=f"file.json {message}"):
        read_json(tmp_path / "file.json")


@dataclass
class Config:
    """Settings of all kinds.

    Args:
        count: How often,
            in all.
        rate (`float`, *optional*):
            How fast.
    """

    count: int = setting(1, least=1, most=9)
    rate: float = setting(0.5, above=0, below=1)
    maybe: int | None = setting(None, least=0)
    bound: float | None = None
    name: str = setting("a", choices=("a", "b"))
    flag: bool = False
    numbers: list[int] = field(default_factory=list)
    entries: list[str | dict[str, Any]] = field(default_factory=list)
    free: dict[str, Any] = field(default_factory=dict)
    act: str | Callable[..., Any] | None = None

    def __post_init__(self):
        check_settings(self, "section")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "section.count must be a whole number, at least 1, at most 9, got 0"),
        ({"count": 10}, "section.count must be .* got 10"),
        ({"count": 1.0}, "section.count must be .* got 1.0"),
        ({"count": True}, "section.count must be .* got True"),
        ({"count": "1"}, "section.count must be .* got '1'"),
        ({"count": None}, "section.count must be .* got None"),
        ({"count": np.float64(2)}, "section.count must be .* got 2.0"),
        ({"count": [1]}, r"section.count must be .* got \[1\]"),
        ({"rate": 0}, "section.rate must be a finite number, above 0, below 1, got 0"),
        ({"rate": float("nan")}, "section.rate must be .* got nan"),
        ({"rate": float("inf")}, "section.rate must be .* got inf"),
        ({"rate": "0.5"}, "section.rate must be .* got '0.5'"),
        ({"maybe": -1}, "section.maybe must be a whole number or null, at least 0, got -1"),
        ({"bound": float("-inf")}, "section.bound must be a finite number or null, got -inf"),
        ({"name": "c"}, "section.name must be one of a, b, got 'c'"),
        ({"name": 3}, "section.name must be one of a, b, got 3"),
        ({"flag": 1}, "section.flag must be true or false, got 1"),
        ({"flag": "yes"}, "section.flag must be true or false, got 'yes'"),
        ({"numbers": 3}, "section.numbers must be a list, each a whole number, got 3"),
        ({"numbers": [1, None]}, r"section.numbers must be .* got \[1, None\]"),
        ({"entries": [3]}, r"section.entries must be a list, each text or a mapping, got \[3\]"),
        ({"free": [1]}, r"section.free must be a mapping, got \[1\]"),
        ({"free": {1: 2}}, "section.free must be a mapping, got {1: 2}"),
        ({"act": 3}, "section.act must be text or a function or null, got 3"),
        ({"fre": {}}, "unknown setting section.fre: expected one of count, rate"),
        ({"free": ["x" * 1000]}, r"section.free must be a mapping, got \['x{198}\.\.\."),
    ],
)
def test_values_that_a_setting_cannot_have_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make_section(Config, settings, "section")


def test_numbers_of_numpy_and_tuples_become_plain_ones():
    config = Config(count=np.int64(2), rate=np.float32(0.25), maybe=np.uint8(3), bound=2, numbers=(np.int64(1), 2))
    assert json.loads(json.dumps(asdict(config))) == {
        **asdict(Config()),
        **{"count": 2, "rate": 0.25, "maybe": 3, "bound": 2.0, "numbers": [1, 2]},
    }
    assert type(config.bound) is float


class Worker:
    """Takes its settings as a dataclass or as keywords."""

    @with_settings(Config, "section")
    def __init__(self, config: Config, *, folder: str = "here"):
        self.config, self.folder = config, folder


def test_functions_that_take_settings_take_them_as_keywords():
    for worker in (
        Worker(Config(3, act=len)),
        Worker(3, act=len),
        Worker(count=3, act=len, folder="here"),
        Worker(Config(), act=len, count=3),
        Worker(config=Config(5, act=len), count=3),
    ):
        assert (worker.config, worker.folder) == (Config(count=3, act=len), "here")
    assert Worker().config == Config()
    config = Config()
    Worker(config, count=2)
    assert config.count == 1

    for call, error, message in (
        (lambda: Worker(foldr="there"), ValueError, "unknown setting section.foldr: expected one of count"),
        (lambda: Worker(Config(), cnt=1), ValueError, "unknown setting section.cnt"),
        (lambda: Worker(count=0), ValueError, "section.count must be a whole number"),
        (lambda: Worker(Config(), count=0), ValueError, "section.count must be a whole number"),
        (lambda: Worker({}), ValueError, "section.count must be"),
        (lambda: Worker(1, count=1), TypeError, "two values for count"),
        (lambda: Worker(1, 2), TypeError, "too many positional"),
    ):
        with pytest.raises(error, match=message):
            call()

    parameters = inspect.signature(Worker).parameters
    assert list(parameters)[:4] == ["config", "folder", "count", "rate"]
    assert (parameters["rate"].default, parameters["numbers"].default) == (0.5, [])
    assert parameters["rate"].annotation is float


def test_docstrings_describe_settings_also_inherited_ones():
    class Narrower(Config):
        """Some more.

        Args:
            rate: How fast now.
        """

    assert descriptions(Narrower) == {"count": "How often, in all.", "rate": "How fast now."}
