"""Files and folders that are either whole or not there."""

import os

import pytest

from ad_hf.files import atomic_folder, atomic_path, write_text


def tree(folder):
    """Text of every file below a folder, hidden ones included."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_file_appears_with_its_whole_content(tmp_path):
    with atomic_path(tmp_path / "data.txt") as temporary:
        temporary.write_text("half")
        assert not (tmp_path / "data.txt").exists()
        temporary.write_text("whole")
    assert tree(tmp_path) == {"data.txt": "whole"}


def test_file_is_replaced_at_once(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("old")
    with atomic_path(str(path)) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert tree(tmp_path) == {"data.txt": "new"}


@pytest.mark.parametrize("before", [{}, {"data.txt": "old"}])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_writer_that_raises_leaves_the_old_file_and_nothing_else(tmp_path, before, error):
    for name, text in before.items():
        (tmp_path / name).write_text(text)

    def write():
        with atomic_path(tmp_path / "data.txt") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert tree(tmp_path) == before


def test_writer_that_writes_nothing_is_an_error_and_keeps_the_old_file(tmp_path):
    (tmp_path / "data.txt").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "data.txt"):
        pass
    assert tree(tmp_path) == {"data.txt": "old"}


def test_text_is_written_with_its_folder(tmp_path):
    write_text(tmp_path / "a" / "b" / "data.txt", "naïve ☃\n")
    assert (tmp_path / "a" / "b" / "data.txt").read_bytes() == "naïve ☃\n".encode()
    assert tree(tmp_path).keys() == {os.path.join("a", "b", "data.txt")}


def test_folder_appears_with_its_whole_content(tmp_path):
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "weights").write_text("1")
        (temporary / "config").write_text("2")
        assert not (tmp_path / "model").exists()
    assert tree(tmp_path) == {os.path.join("model", "inner", "weights"): "1", os.path.join("model", "config"): "2"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_folder_is_replaced_and_not_merged(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stale").write_text("old")
    with atomic_folder(str(tmp_path / "model")) as temporary:
        (temporary / "weights").write_text("new")
        assert tree(tmp_path / "model") == {"stale": "old"}
    assert tree(tmp_path) == {os.path.join("model", "weights"): "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_filler_that_raises_leaves_the_old_folder_and_nothing_else(tmp_path, existed, error):
    if existed:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "weights").write_text("old")
    before = tree(tmp_path)

    def fill():
        with atomic_folder(tmp_path / "model") as temporary:
            (temporary / "weights").write_text("half")
            raise error

    with pytest.raises(error):
        fill()
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"] * existed
