"""Settings are read as data and checked where they are declared: errors name the setting, good values come back."""

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import example, given
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

LIKE_OTHER_THINGS = ["3e-4", "1E5", "2020-01-01", "on", "null", "0x1F", "1_000", "'", "~", "=", "<<"]
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
BOMB = "\n".join(
    ["a: &a [x]", *(f"{one}: &{one} [{', '.join([f'*{two}'] * 9)}]" for two, one in zip("abcdefg", "bcdefgh"))]
)


@given(st.dictionaries(st.text(), PLAIN, max_size=4))
@example({"key": LIKE_OTHER_THINGS, **dict.fromkeys(LIKE_OTHER_THINGS, 1)})
def test_yaml_comes_back_as_it_was_written(data):
    assert parse_yaml(dump_yaml(data), "file.yaml") == data


def test_numbers_are_read_as_people_write_them():
    assert parse_yaml("[3e-4, 1E5, -2.5e+3, .5, 7, '7', 2020-01-01]", "", list) == [
        *(0.0003, 100000.0, -2500.0, 0.5, 7, "7", "2020-01-01"),
    ]


WRONG_YAML = (
    ("a: 1\nb: 2\na: 3", "'a' stands there twice"),
    ("a: {b: {c: 1, c: 2}}", "'c' stands there twice"),
    ("a: &x [*x]", "its aliases stand for too much"),
    ("a: &x {b: {c: *x}}", "its aliases stand for too much"),
    (BOMB, "its aliases stand for too much"),
    ("a: {1: 2}", "the key 1 is not text"),
    ("on: 2", "the key True is not text"),
    *((f"a: !!{tag} [b]", tag) for tag in ("binary", "set", "omap", "python/object/apply:os.system")),
    ("a: !mine 3", "!mine"),
    ("a: !!int b", "invalid literal"),
    ("a: [", "expected the node content"),
    ("a: 'b", "unexpected end"),
    ("a: 1\n--- \nb: 2", "expected a single document"),
    ("[" * 10_000, "nests too deep"),
    ("- a", "must hold a mapping, got ['a']"),
    ("", "must hold a mapping, got None"),
    ("\x00", "special characters"),
)
WRONG_JSON = (
    ("{", "is not JSON"),
    ("[" * 10**5, "nests too deep"),
    ("3", "must hold a mapping, got 3"),
    ('{"a": "\\ud800"}', "is not JSON"),
)


@pytest.mark.parametrize(("read", "wrong"), [(read_yaml, WRONG_YAML), (read_json, WRONG_JSON)])
def test_files_that_cannot_be_read_are_named(tmp_path, read, wrong):
    path = tmp_path / "file"
    for text, message in ((b"\xff\xfe", "is not UTF-8"), (b"[1]", "must hold a mapping"), *wrong):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match=r"^\S+/file ") as caught:
            read(path)
        assert message in str(caught.value), text[:100]
    os.mkfifo(tmp_path / "pipe")
    for missing in (tmp_path / "pipe", tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileNotFoundError, match=str(missing)):
            read(missing)


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
    name: Literal["a", "b"] | None = "a"
    flag: bool = False
    numbers: list[int] = field(default_factory=list)
    entries: list[str | dict[str, Any]] = field(default_factory=list)
    free: dict[str, Any] = field(default_factory=dict)
    act: str | Callable[..., Any] | None = None

    def __post_init__(self):
        check_settings(self, "section")


def test_values_that_a_setting_cannot_have_are_refused_by_name():
    for name, value, message in (
        *(("count", value, f"must be at least 1 and at most 9, got {value}") for value in (0, 10)),
        *(("count", value, f"must be a whole number, got {value!r}") for value in (1.0, True, "1", None, [1])),
        ("count", 2**63, f"must be a whole number of at most 64 bits, got {2**63}"),
        ("count", np.float64(2), "must be a whole number, got 2.0"),
        *(("rate", value, f"must be above 0 and below 1, got {value}") for value in (0, 1.0)),
        *(("rate", value, f"must be a finite number, got {value!r}") for value in (np.nan, np.inf, "0.5", True)),
        ("maybe", -1, "must be at least 0, got -1"),
        ("maybe", "1", "must be a whole number or null, got '1'"),
        ("bound", -np.inf, "must be a finite number or null, got -inf"),
        *(("name", value, f"must be one of a, b or null, got {value!r}") for value in ("c", 3)),
        *(("flag", value, f"must be true or false, got {value!r}") for value in (1, "yes")),
        ("numbers", 3, "must be a list, got 3"),
        ("numbers", [1, None], "[1] must be a whole number, got None"),
        ("entries", ["a", {}, 3], "[2] must be text or a mapping, got 3"),
        ("free", [1], "must be a mapping, got [1]"),
        ("free", {1: 2}, "must be a mapping with text as names, got {1: 2}"),
        ("free", ["x" * 1000], f"must be a mapping, got ['{'x' * 198}..."),
        ("act", 3, "must be text or a function or null, got 3"),
    ):
        with pytest.raises(ValueError, match=r"^section\.") as caught:
            make_section(Config, {name: value}, "section")
        assert str(caught.value) == f"section.{name}{'' if message[0] == '[' else ' '}{message}"
    with pytest.raises(ValueError, match=r"^unknown setting section\.fre \(did you mean free\?\): expected one of"):
        make_section(Config, {"fre": {}}, "section")


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
        (lambda: Worker(count=0), ValueError, "section.count must be at least 1"),
        (lambda: Worker(Config(), count=0), ValueError, "section.count must be at least 1"),
        (lambda: Worker({}), ValueError, "section.count must be a whole number"),
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
