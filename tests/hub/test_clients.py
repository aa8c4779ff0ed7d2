"""Other clients than Python's read what is pushed: the command `hf`, and JavaScript's @huggingface/hub."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NPM = Path(__file__).with_name("npm")
KINDS = {"dataset": "local/histories", "model": "local/model"}
READ = """
import { datasetInfo, downloadFile, listFiles, modelInfo } from "@huggingface/hub";

const [hubUrl, accessToken, repos] = [process.env.HF_ENDPOINT, process.env.HF_TOKEN, JSON.parse(process.argv[2])];
const found = {};
for (const [type, [name, path]] of Object.entries(repos)) {
  const repo = { type, name }, files = {};
  for await (const file of listFiles({ repo, recursive: true, hubUrl, accessToken })) {
    if (file.type === "file") files[file.path] = [file.size, file.lfs?.oid ?? null];
  }
  const blob = await downloadFile({ repo, path, hubUrl, accessToken });
  const info = type === "model" ? modelInfo : datasetInfo;
  const card = await info({ name, hubUrl, accessToken, additionalFields: ["cardData"] });
  found[type] = { files, content: await blob.text(), card: card.cardData };
}
console.log(JSON.stringify(found));
"""


@pytest.fixture
def pushed(hub, ad_hf_with_hub, tiny_histories, tiny_run):
    """Histories and a model: for each kind, its files."""
    ad_hf_with_hub("push", "dataset", tiny_histories, KINDS["dataset"])
    ad_hf_with_hub("push", "model", tiny_run, KINDS["model"])
    return {kind: hub.files(kind, repo) for kind, repo in KINDS.items()}


@pytest.fixture(scope="session")
def npm_folder(tmp_path_factory):
    """A folder with the client that package-lock.json pins, whose hashes npm verifies."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("npm or node is not installed: apt-get install npm")
    folder = shutil.copytree(NPM, tmp_path_factory.mktemp("npm") / "client")
    command = [npm, "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=optional"]
    done = subprocess.run([*command, "--prefer-offline"], cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"npm could not install @huggingface/hub: {done.stderr.strip()[-300:]}")
    (folder / "read.js").write_text(READ)
    return folder


def test_the_command_line_client_reads_what_is_pushed(hub, pushed, run_with_hub, tmp_path):
    hf = Path(sys.executable).with_name("hf")
    for kind, repo in KINDS.items():
        files = pushed[kind]
        listed = json.loads(run_with_hub([hf, f"{kind}s", "ls", repo, "-R", "--format", "json"]).stdout)
        sizes = {entry["path"]: entry["size"] for entry in listed if "size" in entry}
        assert {path: sizes.get(path) for path in files} == {path: len(content) for path, content in files.items()}
        data = json.loads(run_with_hub([hf, f"{kind}s", "card", repo, "--metadata", "--format", "json"]).stdout)
        assert data["license"] == "apache-2.0"
        info = json.loads(run_with_hub([hf, f"{kind}s", "info", repo, "--format", "json"]).stdout)
        assert (info["sha"], info["card_data"]["tags"]) == (hub.commits(kind, repo)[0], data["tags"])
        run_with_hub([hf, "download", repo, "README.md", "--type", kind, "--local-dir", tmp_path / kind])
        assert (tmp_path / kind / "README.md").read_bytes() == files["README.md"]


def test_the_javascript_client_reads_what_is_pushed(hub, pushed, npm_folder, run_with_hub):
    paths = {"dataset": "default/metadata.json", "model": "config.json"}
    asked = json.dumps({kind: [repo, paths[kind]] for kind, repo in KINDS.items()})
    found = json.loads(run_with_hub(["node", npm_folder / "read.js", asked]).stdout)
    for kind, files in pushed.items():
        sizes = {path: size for path, (size, _) in found[kind]["files"].items()}
        assert sizes == {path: len(content) for path, content in files.items()}
        assert found[kind]["content"].encode() == files[paths[kind]]
        assert found[kind]["card"]["license"] == "apache-2.0"
    weights = pushed["model"]["model.safetensors"]
    assert found["model"]["files"]["model.safetensors"] == [len(weights), hashlib.sha256(weights).hexdigest()]
    assert found["model"]["card"]["library_name"] == "ad-hf"
    assert found["dataset"]["card"]["configs"][0]["config_name"] == "default"
