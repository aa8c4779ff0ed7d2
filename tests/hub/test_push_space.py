"""The page of a model on the Hub, as a static Space."""

import shutil
from pathlib import Path

import pytest
from hub_files import card_in

DEMO = Path(__file__).parents[2] / "docs" / "demo"


@pytest.fixture(autouse=True)
def runtime_of_the_worker(page_runtime, worker):
    """The runtime in the cache of the process that pushes."""
    place = Path(worker.home, "assets", *page_runtime.parts[-4:])
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(page_runtime, place)


def test_a_page_is_a_static_space_of_one_commit_and_is_replaced_whole(hub, ad_hf_with_hub):
    url = ad_hf_with_hub("push", "space", DEMO, "local/room").stdout.strip()
    files = hub.files("space", "local/room")
    card = card_in(hub, "space", "local/room")
    assert (card.data.sdk, card.data.app_file, card.data.license) == ("static", "index.html", "apache-2.0")
    assert "ad-hf push space MODEL local/room" in card.text
    assert files["model/model.onnx"] == (DEMO / "model.onnx").read_bytes()
    assert {"index.html", "app.js", "style.css", "runtime/ort.wasm.bin", "model/model.json"} < files.keys()
    assert "/spaces/local/room/tree/" in url

    hub.commit("space", "local/room", {"old.js": b"", "model/old.onnx": b"", "notes.txt": b"mine"})
    before = len(hub.commits("space", "local/room"))
    ad_hf_with_hub("push", "space", DEMO, "local/room")
    assert hub.files("space", "local/room").keys() == files.keys() | {"notes.txt"}
    assert len(hub.commits("space", "local/room")) == before + 1


def test_what_the_page_cannot_show_makes_no_space(hub, ad_hf_with_hub, tmp_path):
    (tmp_path / "model.onnx").write_bytes((DEMO / "model.onnx").read_bytes())
    description = (DEMO / "model.json").read_text().replace("ad_hf/DarkRoom-v0", "CartPole-v1")
    (tmp_path / "model.json").write_text(description)
    done = ad_hf_with_hub("push", "space", tmp_path, "local/cart", check=False)
    assert done.returncode == 2
    assert "the page draws ad_hf/DarkRoom-v0 alone, and the model is of CartPole-v1" in done.stderr
    assert [request.method for request in hub.requests if "local/cart" in request.path] == []
