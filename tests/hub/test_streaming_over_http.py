"""Training on histories that are read over HTTP: the same data, no more of it than needed, whatever the way does."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_files import describe, refusal

SHORT = ["--training.max_steps", "6", "--training.eval_steps", "6"]
SHARD = "default/train-00000-of-00001.parquet"


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def trained_on(run):
    return json.loads((run / "run.json").read_text())["dataset"]


def ranges(hub):
    """Reads of parts of shards."""
    return [request for request in hub.requests if request.range is not None and ".parquet" in request.path]


def publish(hub, repo, folder, revision="main"):
    """Someone else's push of a dataset."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return hub.commit("dataset", repo, files, revision)


@pytest.fixture
def train(ad_hf_with_hub, tiny_recipe_file, tmp_path):
    """Train the tiny recipe on a dataset; returns the run's folder, or how it failed."""

    def train(dataset, name, *options, check=True):
        run = tmp_path / name
        command = ["train", "--recipe", tiny_recipe_file, "--dataset", dataset, "--output_dir", run, *SHORT, *options]
        done = ad_hf_with_hub(*command, check=check)
        return run if check else done

    return train


@pytest.fixture
def other_histories(tiny_histories, tmp_path):
    """The same tasks, fewer of their histories."""
    folder = shutil.copytree(tiny_histories, tmp_path / "others")
    table = pq.read_table(folder / SHARD)
    pq.write_table(table.slice(len(table) // 2), folder / SHARD)
    return describe(folder)


@pytest.fixture
def rewritten(tiny_histories, tmp_path):
    """Write the histories anew: so many times, in so many shards of several row groups."""

    def rewrite(name, shards=1, copies=1, change=lambda table: table):
        folder = shutil.copytree(tiny_histories, tmp_path / name)
        table = pq.read_table(folder / SHARD)
        (folder / SHARD).unlink()
        for shard in range(shards):
            parts = []
            for copy in range(shard * copies, (shard + 1) * copies):
                ids = pa.array([f"{copy}-{history}" for history in table["history_id"].to_pylist()])
                parts.append(change(table.set_column(0, "history_id", ids)))
            path = folder / f"default/train-{shard:05d}-of-{shards:05d}.parquet"
            with pq.ParquetWriter(path, parts[0].schema) as writer:
                for part in parts:
                    writer.write_table(part)
        return describe(folder)

    return rewrite


def test_streaming_from_the_hub_trains_as_streaming_from_a_folder_does(hub, train, tiny_histories):
    commit = publish(hub, "local/histories", tiny_histories)
    run = train("local/histories", "remote", "--streaming")
    assert losses(run) == losses(train(tiny_histories, "local", "--streaming"))
    fingerprint = json.loads((tiny_histories / "default" / "metadata.json").read_text())["fingerprint"]
    assert trained_on(run) == {
        "name": "local/histories",
        "revision": commit,
        "config_name": "default",
        "source": "A2C",
        "fingerprint": fingerprint,
        "streaming": True,
    }
    whole = [request for request in hub.requests if ".parquet" in request.path and request.range is None]
    assert not whole
    assert ranges(hub)


OFFLINE = """
import sys
from ad_hf.cli import main

recipe, output_dir, *short = sys.argv[1:]
for number, (dataset, *options) in enumerate(
    [["local/cached"], ["local/cached", "--streaming"], ["local/streamed"], ["local/streamed", "--streaming"]]
    + [["local/never"], ["local/cached@0123456"]]
):
    run = f"{output_dir}/{number}"
    print(main(["train", "--recipe", recipe, "--dataset", dataset, "--output_dir", run, *short, *options]))
"""


def test_offline_a_dataset_is_trained_on_from_the_cache_or_said_to_be_missing(
    hub, worker, train, run_with_hub, tiny_histories, tiny_recipe_file, tmp_path
):
    commit = publish(hub, "local/cached", tiny_histories)
    publish(hub, "local/streamed", tiny_histories)
    in_memory, streamed = train("local/cached", "in memory"), train("local/streamed", "streamed", "--streaming")
    hub.stop()

    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": worker.home}
    done = run_with_hub(OFFLINE, tiny_recipe_file, tmp_path / "offline", *SHORT, environment=environment)
    codes = [line for line in done.stdout.splitlines() if line in ("0", "2")]
    assert codes == ["0", "0", "2", "2", "2", "2"]
    assert losses(tmp_path / "offline" / "0") == losses(in_memory)
    assert losses(tmp_path / "offline" / "1") == losses(streamed)
    assert trained_on(tmp_path / "offline" / "0")["revision"] == commit
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("ad-hf: error: ")]
    missing = ["local/streamed", "local/streamed", "local/never", "local/cached@0123456"]
    assert len(errors) == len(missing)
    assert all(word in error for error, name in zip(errors, missing) for word in (name, "cache", "HF_HUB_OFFLINE"))


def test_a_revision_stays_what_it_is_while_others_push(hub, ad_hf_with_hub, train, tiny_histories, other_histories):
    commit = publish(hub, "local/pinned", tiny_histories)
    expected = losses(train(tiny_histories, "folder", "--streaming"))
    refs = "from huggingface_hub import HfApi; api = HfApi(); repo = {'repo_type': 'dataset'}\n"
    refs += "api.create_tag('local/pinned', tag='v1', **repo)\n"
    refs += "api.create_branch('local/pinned', branch='side', **repo)"
    ad_hf_with_hub(script=refs)
    newest = publish(hub, "local/pinned", other_histories)

    for revision in ("v1", "side", commit):
        run = train(f"local/pinned@{revision}", revision, "--streaming")
        assert losses(run) == expected
        assert (trained_on(run)["name"], trained_on(run)["revision"]) == ("local/pinned", commit)
    assert losses(train("local/pinned@v1", "in memory")) == losses(train(tiny_histories, "folder in memory"))
    run = train("local/pinned", "newest", "--streaming")
    assert losses(run) != expected
    assert trained_on(run)["revision"] == newest
    last = refusal(train("local/pinned@v2", "nowhere", "--streaming", check=False))
    assert "local/pinned@v2" in last
    assert "no such revision" in last


STREAM_WHILE_ANOTHER_PUSHES = """
import sys
import torch
import ad_hf
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.histories.selection import DataConfig, Selection
from ad_hf.histories.stream import HistoryStream, StreamedBatches

folder, others = sys.argv[1:]


def batches(dataset, push):
    opened = HistoryDataset.open(dataset)
    if push:
        ad_hf.push_dataset(others, "local/moving")
    iterator = iter(StreamedBatches(HistoryStream(opened, "train", DataConfig(), 24), batch_size=8))
    return [next(iterator) for _ in range(5)]


for batch, expected in zip(batches("local/moving", push=True), batches(folder, push=False), strict=True):
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
"""


def test_a_stream_keeps_to_the_commit_that_it_began_with(hub, ad_hf_with_hub, tiny_histories, other_histories):
    publish(hub, "local/moving", tiny_histories)
    ad_hf_with_hub(tiny_histories, other_histories, script=STREAM_WHILE_ANOTHER_PUSHES)
    assert hub.files("dataset", "local/moving")[SHARD] == (other_histories / SHARD).read_bytes()


def with_huge_finals(table):
    """The same histories, with a column of noise that training does not read."""
    index = table.schema.get_field_index("final_observations")
    kind = table.schema.field(index).type
    noise = np.random.default_rng(0).integers(0, 256, size=(len(table), 100_000, 2), dtype=np.uint8)
    inner = pa.array(noise.ravel()).cast(kind.value_type.value_type)
    pairs = pa.FixedSizeListArray.from_arrays(inner, 2)
    offsets = pa.array(np.arange(len(table) + 1, dtype=np.int32) * 100_000)
    return table.set_column(index, table.schema.field(index), pa.ListArray.from_arrays(offsets, pairs, type=kind))


def test_only_the_columns_that_training_needs_are_read(hub, train, tiny_histories, rewritten):
    publish(hub, "local/huge", rewritten("huge", copies=3, change=with_huge_finals))
    size = len(hub.files("dataset", "local/huge")[SHARD])
    small = (tiny_histories / SHARD).stat().st_size
    assert size > 100 * small
    epochs = 4  # at most: 6 updates of 8 windows, and what is read ahead
    train("local/huge", "run", "--streaming")
    assert sum(request.bytes_sent for request in hub.requests) < size / 10
    assert sum(request.bytes_sent for request in ranges(hub)) < epochs * 3 * small + 2**17


READ_AN_EPOCH = """
import sys
from ad_hf.histories.dataset import HistoryDataset
from ad_hf.histories.selection import DataConfig, Selection
from ad_hf.histories.stream import HistoryStream, StreamedBatches

stream = HistoryStream(HistoryDataset.open(sys.argv[1]), "train", DataConfig(), int(sys.argv[2]))
batches, windows = StreamedBatches(stream, batch_size=1), 0
for batch in batches:
    windows += 1
    if batches.state_dict()["places"][0][0] == 1:
        break
print(windows, len(stream.blocks(1)))
"""


def test_an_epoch_asks_once_for_each_footer_and_each_block_however_many_windows_there_are(
    hub, ad_hf_with_hub, rewritten
):
    def read(name, context_length, **layout):
        """Windows of an epoch, blocks, and requests that are for neither footers nor blocks."""
        publish(hub, f"local/epoch-{name}", rewritten(name, **layout))
        hub.clear_log()
        printed = ad_hf_with_hub(f"local/epoch-{name}", context_length, script=READ_AN_EPOCH).stdout
        windows, blocks = map(int, printed.split())
        asked = [(request.path, request.range) for request in ranges(hub) if f"local/epoch-{name}/" in request.path]
        assert len(set(asked)) == layout["shards"] + blocks
        assert len(asked) <= layout["shards"] + 2 * blocks  # the next epoch's are read ahead
        others = [request for request in hub.requests if f"local/epoch-{name}" in request.path and not request.range]
        return windows, blocks, len(others)

    windows, blocks, constant = read("long", 40, shards=2, copies=6)
    many_windows, same_blocks, same_constant = read("short", 4, shards=2, copies=6)
    assert many_windows >= 9 * windows
    assert (same_blocks, same_constant) == (blocks, constant)
    _, other_blocks, same_constant = read("shards", 40, shards=5, copies=4)
    assert other_blocks != blocks
    assert same_constant == constant


def test_training_gets_over_what_happens_on_the_way(hub, train, rewritten):
    folder = rewritten("rough", shards=4, copies=2)
    publish(hub, "local/rough", folder)
    hub.fail("503", path="/api/datasets/")
    for shard, (fault, times) in enumerate([("503", 2), ("cut", 1), ("drop", 1), ("slow", 1)]):
        hub.fail(fault, times=times, method="GET", path=f"/resolve/.*train-0000{shard}")
    assert losses(train("local/rough", "rough", "--streaming")) == losses(train(folder, "local", "--streaming"))
    statuses = [request.status for request in ranges(hub)]
    assert (statuses.count(503), statuses.count(0)) == (2, 1)
    assert len(ranges(hub)) > 4 + 4  # those, and what went well


def test_a_dataset_that_is_withdrawn_while_it_is_read_ends_training_with_one_line(hub, train, tiny_histories):
    publish(hub, "local/gone", tiny_histories)
    train("local/gone", "before", "--streaming")
    reads = len(ranges(hub))
    assert reads > 2
    hub.fail("403", times=10**6, path="/resolve/.*parquet")
    last = refusal(train("local/gone", "after", "--streaming", check=False))
    assert "local/gone" in last
    assert "403" in last
    assert "HF_TOKEN" in last


def test_a_name_that_nobody_has_and_a_hub_that_is_not_there_are_told_in_one_line(hub, train):
    for name in ("nobody", "there"):
        last = refusal(train(f"local/{name}", name, "--streaming", check=False))
        assert f"local/{name}" in last
        assert hub.url in last
        hub.stop()


@pytest.mark.slow  # the client itself tries each read for 23 seconds, and we try that four times
def test_reads_that_keep_failing_end_training_with_one_line(hub, train, tiny_histories):
    publish(hub, "local/down", tiny_histories)
    hub.fail("503", times=10**6, path="/resolve/.*parquet")
    last = refusal(train("local/down", "run", "--streaming", check=False))
    assert "local/down" in last
    assert "503" in last


WINDOWS = """
import sys
from datasets import load_dataset
from torch.utils.data import DataLoader
import ad_hf

name = "local/histories"
config = ad_hf.config_from_dataset(name, context_length=24)
rows = load_dataset(name, split="train", streaming=True)
whole = ad_hf.HistoryWindowsDataset(name, config)

def read(windows, workers):
    batches = DataLoader(windows, 8, collate_fn=ad_hf.collate_windows, num_workers=workers)
    return sorted(str([each.tolist() for each in window]) for batch in batches for window in zip(*batch.values()))

expected = read(whole, 0)
for source in (rows, name):
    print(read(ad_hf.IterableHistoryWindowsDataset(source, config), 2) == expected, len(expected) > 40)
"""


def test_windows_for_a_loop_of_ones_own_stream_from_the_hub(hub, ad_hf_with_hub, rewritten):
    """As rows of `load_dataset` and by name, in workers that are forked from a process that has read from it."""
    publish(hub, "local/histories", rewritten("wide", shards=3, copies=2))
    done = ad_hf_with_hub(script=WINDOWS)
    assert done.stdout.splitlines() == ["True True"] * 2
    assert len(ranges(hub)) > 6
