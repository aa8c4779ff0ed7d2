"""Npz, HDF5 and task files that are damaged, lie about themselves or lead to other files: one clear error each."""

import os
import re
import zipfile

import numpy as np
import pytest

from ad_hf.formats.arrays import from_arrays

h5py = pytest.importorskip("h5py")

ARRAYS = {
    "observations": np.zeros((6, 2), dtype=np.int64),
    "actions": np.array([0, 1, 2, 0, 1, 2]),
    "rewards": np.linspace(0, 1, 6),
    "dones": np.array([0, 0, 1, 0, 0, 1], dtype=bool),
}


@pytest.fixture
def source(tmp_path):
    """A folder for files to import."""
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def convert(source, **settings):
    return from_arrays(source, source.parent / "out", **{"env_id": "E-v0", **settings})


def refused(source, told, **settings):
    with pytest.raises(ValueError, match=told) as error:
        convert(source, **settings)
    assert not (source.parent / "out").exists()
    return str(error.value)


def patched(data, position, value):
    return data[:position] + value + data[position + len(value) :]


def in_directory(data, offset, value):
    """Change a field of the last member in a zip's central directory."""
    return patched(data, data.rindex(b"PK\x01\x02") + offset, value)


def in_both(data, offset, value):
    """Change a field of the last member of a zip where it stands twice."""
    return in_directory(patched(data, data.rindex(b"PK\x03\x04") + offset, value), offset + 2, value)


def header_of(array, **changed):
    header = {**np.lib.format.header_data_from_array_1_0(array), **changed}
    return lambda file: np.lib.format.write_array_header_1_0(file, header)


NPZ = {
    "encrypted": (lambda data: in_both(data, 6, b"\x01\x00"), "array dones cannot be read: .*encrypted"),
    "an unknown compression": (
        lambda data: in_both(data, 8, b"\x63\x00"),
        "array dones cannot be read: .*compression",
    ),
    "truncated": (lambda data: data[:-60], "cannot be read: File is not a zip file"),
    "empty": (lambda data: b"", "cannot be read: File is not a zip file"),
    "flipped bytes": (
        lambda data: patched(data, data.rindex(b"\x93NUMPY") + 128, b"\xff" * 4),
        "dones cannot be read",
    ),
    "no header": (lambda data: data.replace(b"\x93NUMPY", b"\x93NUMPI"), "array observations cannot be read"),
    "an npy file": (lambda data: data[data.index(b"\x93NUMPY") :][:200], "cannot be read: File is not a zip file"),
}


@pytest.mark.parametrize("name", NPZ)
def test_a_damaged_npz_file_is_named_with_the_array(name, source):
    damage, told = NPZ[name]
    np.savez(source / "a.npz", **ARRAYS)
    (source / "a.npz").write_bytes(damage((source / "a.npz").read_bytes()))
    refused(source, f"^{re.escape(str(source / 'a.npz'))}.*{told}")


HEADERS = {
    "20 GB": ({"shape": (20 * 10**9,)}, "(Unable to allocate|EOF)"),
    "more than there is": ({"shape": (7,)}, "EOF: reading array data, expected 56 bytes got 48"),
    "less than there is": ({"shape": (5,)}, "it holds more than the 40 bytes"),
    "a negative size": ({"shape": (-6, -1)}, "one unknown dimension"),
    "objects": ({"descr": "|O"}, "Object arrays cannot be loaded"),
    "an expression": ({"descr": "__import__('os').system('true')"}, "descr is not a valid dtype"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_is_compared_with_what_there_is(name, source):
    changed, told = HEADERS[name]
    with zipfile.ZipFile(source / "a.npz", "w") as archive:
        for key, array in ARRAYS.items():
            with archive.open(f"{key}.npy", "w") as file:
                header_of(array, **(changed if key == "rewards" else {}))(file)
                file.write(array.tobytes())
    refused(source, f"a.npz, array rewards cannot be read: .*{told}")


def test_a_name_that_stands_twice_in_an_npz_file_is_refused(source):
    np.savez(source / "a.npz", **ARRAYS)
    with zipfile.ZipFile(source / "a.npz", "a") as archive:
        archive.writestr("rewards", b"again")
    refused(source, "several arrays are called rewards")


def write_hdf5(path, without=(), **others):
    with h5py.File(path, "w", **others) as file:
        for name, array in ARRAYS.items():
            if name not in without:
                file[name] = array
    return h5py.File(path, "a")


def external_link(file, secret):
    file["observations"] = h5py.ExternalLink(secret, "observations")


def external_group(file, secret):
    file.create_group("inner")
    for name in ("rewards", "actions", "dones"):
        file.move(name, f"inner/{name}")
    file["inner/observations"] = h5py.ExternalLink(secret, "observations")


def external_storage(file, secret):
    file.create_dataset("observations", (6, 2), dtype="i8", external=[(str(secret), 0, 96)])


def virtual(file, secret):
    layout = h5py.VirtualLayout((6, 2), dtype="i8")
    layout[:] = h5py.VirtualSource(secret, "observations", (6, 2))
    file.create_virtual_dataset("observations", layout)


def own_virtual(file, secret):
    file["kept"] = ARRAYS["observations"]
    layout = h5py.VirtualLayout((6, 2), dtype="i8")
    layout[:] = h5py.VirtualSource(file["kept"])
    file.create_virtual_dataset("observations", layout)


def soft(target):
    return lambda file, secret: file.__setitem__("observations", h5py.SoftLink(target))


def unwritten(file, secret):
    file.create_dataset("observations", (10**10, 2), dtype="f8")


def larger_than_memory(file, secret):
    for name, array in {**ARRAYS, "observations": np.zeros((6, 2))}.items():
        if name in file:
            del file[name]
        file.create_dataset(name, (10**13, *array.shape[1:]), chunks=(6, *array.shape[1:]), dtype="f8")[:6] = array


ELSEWHERE = {
    "an external link": (external_link, "is a link to elsewhere, <ExternalLink"),
    "a dangling external link": (lambda file, secret: external_link(file, "no.h5"), "is a link to elsewhere"),
    "a link in a group": (external_group, "group inner, array observations cannot be read: it is a link"),
    "external storage": (external_storage, "its elements are in other files"),
    "a virtual dataset": (virtual, "its elements are in other files"),
    "a virtual dataset of its own": (own_virtual, "its elements are in other files"),
    "a soft link": (soft("/actions"), "is a link to elsewhere, <SoftLink"),
    "a soft link to itself": (soft("/observations"), "is a link to elsewhere"),
    "a dangling soft link": (soft("/nothing"), "is a link to elsewhere"),
    "nothing that was written": (unwritten, r"its shape is \(10000000000, 2\), and nothing was ever written to it"),
    "more than the memory": (
        larger_than_memory,
        r"array observations cannot be read: it takes 160,000.0 GB of memory",
    ),
    "a group": (lambda file, secret: file.create_group("observations"), "a group, expected numbers"),
    "nothing at all": (
        lambda file, secret: file.create_dataset("observations", dtype=h5py.Empty("f4")),
        "it is empty",
    ),
    "text": (lambda file, secret: file.__setitem__("observations", ["a"] * 6), "elements of type object"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_an_hdf5_file_has_elsewhere_is_not_read(name, source):
    write, told = ELSEWHERE[name]
    secret = source.parent / "secret.hdf5"
    write_hdf5(secret).close()
    with write_hdf5(source / "a.hdf5", without=["observations"]) as file:
        write(file, secret)
    assert refused(source, told).startswith(str(source / "a.hdf5"))


def test_a_link_to_the_keyword_arguments_is_not_followed(source):
    write_hdf5(source.parent / "secret.hdf5").close()
    with write_hdf5(source / "a.hdf5") as file:
        file["goal"] = h5py.ExternalLink("../secret.hdf5", "rewards")
    refused(source, "goal of the task's keyword arguments cannot be read: .* it is a link to elsewhere")


@pytest.mark.parametrize("part", [b"\x89HDF", b"TREE", b"SNOD", b"HEAP", b"rewards"])
def test_a_damaged_hdf5_file_is_named(part, source):
    write_hdf5(source / "a.hdf5").close()
    whole = (source / "a.hdf5").read_bytes()
    (source / "a.hdf5").write_bytes(whole.replace(part, b"\xff" * len(part)))
    refused(source, re.escape(str(source / "a.hdf5")))


def test_an_hdf5_file_may_have_groups_in_cycles_links_that_are_not_read_and_a_user_block(source):
    with write_hdf5(source / "a.hdf5", userblock_size=512) as file:
        file["inner"] = file["/"]
        file["unused"] = h5py.ExternalLink("no.h5", "x")
    with pytest.warns(UserWarning, match="final observations"):
        assert (convert(source) / "recipe.yaml").is_file()


def test_what_is_not_a_regular_file_is_not_waited_for(source):
    os.mkfifo(source / "a.npz")
    for path in (source, source / "a.npz"):
        refused(path if path == source else path.parent, "a.npz cannot be read: it is not a regular file")
    (source / "a.npz").unlink()
    (source / "b.hdf5").mkdir()
    refused(source, "b.hdf5 cannot be read: it is not a regular file")


DEEP = "[" * 10**5
TASKS = {
    "not UTF-8": (b"\xff{}", "tasks.json is not UTF-8"),
    "not JSON": (b"{", "tasks.json is not JSON"),
    "nested": (DEEP.encode(), "tasks.json nests too deep"),
    "NaN": (b'[{"goal": NaN}]', "tasks.json, a: expected keyword arguments of finite numbers"),
    "a number": (b"3", "tasks.json: expected a task for each"),
    "a split": (b'[{"kwargs": {}, "split": ["train"]}]', "tasks.json, a: expected .* with split"),
    "a file": (b'[{"xml_file": "/etc/passwd"}]', "comes with a.xml_file .* trust_remote_code"),
}


@pytest.mark.parametrize("name", TASKS)
def test_tasks_that_are_none_are_refused_with_their_file(name, source):
    text, told = TASKS[name]
    np.savez(source / "a.npz", **ARRAYS)
    (source / "tasks.json").write_bytes(text)
    refused(source, told)


SETTINGS = {
    "an empty id": ({"env_id": ""}, "env_id is missing"),
    "a blank id": ({"env_id": "  "}, "env_id is missing"),
    "env_kwargs": ({"env_kwargs": [1]}, "env_kwargs must be a mapping, got"),
    "no steps in a piece": ({"max_piece_steps": 0}, "max_piece_steps must be at least 1, got 0"),
    "a number as a space": ({"action_space": 5}, "action_space must be a space"),
    "half a space": ({"action_space": {"type": "Discrete"}}, "action_space: n is missing"),
    "a space of letters": ({"action_space": {"type": "Discrete", "n": "a"}}, "action_space: n must be a whole number"),
    "an array twice": (
        {"names": {"observations": "rewards"}},
        "a.npz: the array rewards is taken for the observations",
    ),
    "kwargs that are no object": ({"task_keys": ["kwargs"]}, "kwargs of the task's .* its text must hold a mapping"),
    "kwargs that are no JSON": ({"task_keys": ["text"]}, "text of the task's keyword arguments|finite"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_a_conversion_are_refused_by_name(name, source):
    settings, told = SETTINGS[name]
    np.savez(source / "a.npz", kwargs=np.array("[1]"), text=np.array(np.nan), **ARRAYS)
    refused(source, told, **{"task_keys": [], **settings})
