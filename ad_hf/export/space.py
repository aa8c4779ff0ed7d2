"""The page of a model as a static Space of the Hub."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import SpaceCardData

from ad_hf.export.page import DESCRIPTION_FILE, build_demo
from ad_hf.hub.config import PushConfig
from ad_hf.hub.uploads import Head, Upload, push_upload
from ad_hf.settings import read_json, with_settings
from ad_hf.storage.cards import LICENSE, merge_card

OURS = (".css", ".html", ".js", ".svg")  # files of the page beside its folders runtime/ and model/
TEXT = """\
A transformer with frozen weights learns a task in your browser, by reading its own history: pick a goal that it never
trained on, and watch. The page is static and runs the model on your device.

ad_hf made it: `ad-hf push space MODEL {repo_id}`. `runtime/` holds ONNX Runtime Web, under the MIT licence.
"""


@with_settings(PushConfig, "push")
def push_space(model: str | Path, repo_id: str, config: PushConfig, *, trust_remote_code: bool = False) -> str:
    """
    Push the page of a model to the Hub as a static Space, in one commit.

    Args:
        model (`str` or `Path`):
            As of [`~ad_hf.build_demo`]. The Space links to a model on the Hub, and to its histories there.
        repo_id (`str`):
            `user/name` of the Space.
        config ([`~ad_hf.hub.config.PushConfig`], *optional*):
            Its settings are keywords, too: `private`, `revision`, `token`, `commit_message`, `license`.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether what comes along with the model may name any code.

    Returns:
        `str`: URL of the commit that holds the page.

    Raises:
        ValueError: for a model that the page cannot show.
        HubError: if the Hub cannot be reached or refuses, with what to do about it.
    """
    with TemporaryDirectory() as temporary:
        folder = build_demo(model, Path(temporary) / "page", trust_remote_code=trust_remote_code)
        description = read_json(folder / "model" / DESCRIPTION_FILE)
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        places = {kind: description.get(kind) for kind in ("model", "dataset")}
        links: Any = {f"{kind}s": [place["name"]] for kind, place in places.items() if place}
        data = SpaceCardData(
            title="A frozen model learns in front of you",
            sdk="static",
            license=LICENSE,
            app_file="index.html",
            tags=["in-context-reinforcement-learning", "algorithm-distillation", "onnx"],
            emoji="🌟",
            colorFrom="indigo",
            colorTo="green",
            short_description="In-context reinforcement learning in your browser",
            **links,
        )

        def card(head: Head) -> str:
            return merge_card(head.card(None), data.to_dict(), TEXT.format(repo_id=head.repo_id), config.license)

        def replaces(path: str) -> bool:
            return path.startswith(("runtime/", "model/")) or ("/" not in path and path.endswith(OURS))

        return push_upload(Upload("space", files, replaces, card, "Push a page"), repo_id, config)


__all__ = ["push_space"]
