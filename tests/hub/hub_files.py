"""What the tests of the Hub look at: the files, the card and the requests of a repository, and how a command fails."""

from huggingface_hub import RepoCard

from ad_hf.histories.schema import read_metadata
from ad_hf.histories.statistics import describe_shards

PREVIEW = "/preview-00000-of-00001.parquet"
BEGIN, END = "<!-- ad_hf writes", "<!-- Here ends what ad_hf writes. -->"


def shards_of(folder):
    """The shards of a local dataset, by their paths."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("*/*.parquet")}


def describe(folder):
    """Have the metadata say of changed shards what there is in them."""
    metadata = read_metadata(folder)
    describe_shards(metadata, folder / "default")
    (folder / "default" / "metadata.json").write_text(metadata.to_json())
    return folder


def shards_in(hub, repo, revision="main"):
    """The shards of a dataset on the Hub, by their paths, without previews."""
    files = hub.files("dataset", repo, revision)
    return {path: content for path, content in files.items() if path.endswith(".parquet") and PREVIEW not in path}


def card_in(hub, kind, repo, revision="main"):
    """The card of a repository."""
    return RepoCard(hub.files(kind, repo, revision)["README.md"].decode())


def ask_private(ad_hf_with_hub, kind, repo):
    """Whether a repository is private."""
    asked = f"from huggingface_hub import HfApi; print(HfApi().repo_info({repo!r}, repo_type={kind!r}).private)"
    return ad_hf_with_hub(script=asked).stdout == "True\n"


def uploads(hub, status=200):
    """The paths of uploads that were answered with a status."""
    return {request.path for request in hub.requests if request.method == "PUT" and request.status == status}


def is_untouched(hub):
    """Whether nobody has asked for a change."""
    return {request.method for request in hub.requests} <= {"GET", "HEAD"}


def refusal(done):
    """The one line that a command ends with when it gives up."""
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    *_, last = done.stderr.splitlines()
    assert last.startswith("ad-hf: error: ")
    assert done.stderr.count("ad-hf: error: ") == 1
    return last
