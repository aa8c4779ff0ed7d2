"""Files and folders that are either whole or not there."""

import os

import pytest

from ad_hf.storage.files import (
    atomic_folder,
    atomic_path,
    copy_files,
    leaves_folder,
    refuse_other,
    remove_leftovers,
    write_text,
)


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


def test_a_folder_does_not_take_the_place_of_a_file(tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(FileExistsError, match="model is a file"), atomic_folder(tmp_path / "model"):
        pass
    assert tree(tmp_path) == {"model": "mine"}


@pytest.mark.parametrize(
    ("there", "refused"),
    [
        (None, None),
        ([], None),
        (["config.json", "notes.txt"], None),
        (["notes.txt"], "holds other files and no config.json"),
        ("file", "is a file"),
        ("link", "is a file"),
    ],
    ids=str,
)
def test_what_is_not_ours_is_refused_where_a_folder_is_to_be_written(tmp_path, there, refused):
    path = tmp_path / "model"
    if there == "file":
        path.write_text("mine")
    elif there == "link":
        path.symlink_to(tmp_path / "gone")
    elif there is not None:
        path.mkdir()
        for name in there:
            (path / name).write_text("")
    if refused is None:
        refuse_other(path, "config.json")
    else:
        with pytest.raises(FileExistsError, match=refused):
            refuse_other(path, "config.json")


def test_only_leftovers_are_removed(tmp_path):
    """What a process leaves that is killed in these functions, and nothing that only looks a bit like it."""
    theirs = [".notes.old", ".notes.tmp", ".cache.2024.old", ".push-it.tmp", ".a.12-xyz.tmp", "a.12-0123abcd.tmp"]
    with atomic_path(tmp_path / "a.txt") as file, atomic_folder(tmp_path / "model") as folder:
        file.write_text("")
        ours = [file.name, folder.name, folder.name.replace(".tmp", ".old")]
    ours += [".checkpoint-8.123.tmp", ".model.7.old", ".push-ab_01xyz.tmp"]  # of earlier versions, and of a push
    for name in theirs + ours:
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("")
    (tmp_path / ".b.txt.1-0123abcd.tmp").write_text("half")
    (tmp_path / ".c.1-0123abcd.old").symlink_to(tmp_path / "model")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*theirs, "a.txt", "model"])


def test_links_that_leave_a_folder_are_told_from_those_of_the_hubs_cache(tmp_path):
    repository = tmp_path / "hub" / "models--user--name"
    root = repository / "snapshots" / "0123"
    shared = tmp_path / "hub" / "blobs" / "ab" / ("ab" * 32)
    for file in (root / "inner" / "a.txt", repository / "blobs" / "77", shared, tmp_path / "secret"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.name)
    (repository / "blobs" / "88").symlink_to(shared)
    (repository / "blobs" / "99").symlink_to(tmp_path / "secret")
    targets = {
        "own": "../../blobs/77",
        "shared": "../../blobs/88",
        "inside": "inner/a.txt",
        "through_blobs": "../../blobs/99",
        "out": tmp_path / "secret",
        "other": "../../../blobs/key",
    }
    for name, target in targets.items():
        (root / name).symlink_to(target)
    assert [name for name in targets if leaves_folder(root / name, root)] == ["through_blobs", "out", "other"]
    copy_files(["own", "sh*", "missing"], root, tmp_path / "copy")
    assert tree(tmp_path / "copy") == {"own": "77", "shared": shared.name}
    assert not (tmp_path / "copy" / "own").is_symlink()
    for name in ("out", "inner"):
        with pytest.raises(ValueError, match=r"is a link out of its folder|is no file"):
            copy_files([name], root, tmp_path / "copy")
