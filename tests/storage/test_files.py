"""Files and folders that are either whole or not there."""

import pytest

from ad_hf.storage.files import (
    atomic_folder,
    atomic_path,
    copy_files,
    files_in,
    leaves_folder,
    refuse_other,
    remove_leftovers,
    write_text,
)


def tree(folder):
    """Text of every file below a folder, hidden ones included, and `None` for folders."""
    paths = folder.rglob("*")
    return {path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_text() for path in paths}


@pytest.mark.parametrize("before", [{}, {"data": "old"}])
@pytest.mark.parametrize("as_type", [str, lambda path: path])
def test_a_file_appears_whole_or_not_at_all(tmp_path, before, as_type):
    path = tmp_path / "data"
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    for error in (RuntimeError, KeyboardInterrupt):

        def fail(error=error):
            with atomic_path(path) as temporary:
                temporary.write_text("half")
                raise error

        with pytest.raises(error):
            fail()
        assert tree(tmp_path) == before
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass  # nothing is written
    assert tree(tmp_path) == before
    with atomic_path(as_type(path)) as temporary:
        temporary.write_text("whole")
        assert tree(tmp_path) == {**before, temporary.name: "whole"}
    assert tree(tmp_path) == {"data": "whole"}


def test_text_is_written_with_its_folder(tmp_path):
    write_text(tmp_path / "a" / "b" / "data.txt", "naïve ☃\n")
    assert (tmp_path / "a" / "b" / "data.txt").read_bytes() == "naïve ☃\n".encode()
    assert tree(tmp_path) == {"a": None, "a/b": None, "a/b/data.txt": "naïve ☃\n"}


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("as_type", [str, lambda path: path])
def test_a_folder_appears_whole_or_not_at_all_and_is_not_merged(tmp_path, existed, as_type):
    if existed:
        write_text(tmp_path / "model" / "stale", "old")
    before = tree(tmp_path)
    for error in (RuntimeError, KeyboardInterrupt):

        def fail(error=error):
            with atomic_folder(tmp_path / "model") as temporary:
                (temporary / "weights").write_text("half")
                raise error

        with pytest.raises(error):
            fail()
        assert tree(tmp_path) == before
    with atomic_folder(as_type(tmp_path / "model")) as temporary:
        write_text(temporary / "inner" / "weights", "1")
        (temporary / "config").write_text("2")
        assert before.items() <= tree(tmp_path).items()
        assert (tmp_path / "model").exists() == existed
    assert tree(tmp_path) == {
        "model": None,
        "model/config": "2",
        "model/inner": None,
        "model/inner/weights": "1",
    }


def test_other_things_are_refused_where_a_folder_is_to_be_written(tmp_path):
    path = tmp_path / "model"
    refuse_other(path, "config.json")
    path.mkdir()
    refuse_other(path, "config.json")
    (path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=r"holds other files and no config\.json"):
        refuse_other(path, "config.json")
    (path / "config.json").touch()
    refuse_other(path, "config.json")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    before = set(tmp_path.iterdir())
    for name in ("file", "link"):
        with pytest.raises(FileExistsError, match=f"{name} is a file"):
            refuse_other(tmp_path / name, "config.json")
        with pytest.raises(FileExistsError, match=f"{name} is a file"), atomic_folder(tmp_path / name):
            pass
    assert set(tmp_path.iterdir()) == before


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
        write_text(file, file.name)
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
    copy_files(["own", "sh*", "missing", "inner"], root, tmp_path / "copy")
    assert tree(tmp_path / "copy") == {"own": "77", "shared": shared.name}
    assert not (tmp_path / "copy" / "own").is_symlink()
    assert files_in(root, ["own", "s*"]) == {name: root / name for name in ("own", "shared")}
    for read in (lambda: copy_files(["out"], root, tmp_path / "copy"), lambda: files_in(root, ["ou?"])):
        with pytest.raises(ValueError, match="out is a link out of its folder"):
            read()
