"""The settings of a push."""

from __future__ import annotations

from dataclasses import dataclass

from ad_hf.settings import check_settings


@dataclass
class PushConfig:
    """How to push to a repository, which is made if need be.

    Args:
        private: Whether a new repository is private; by default as the account has it.
        revision: Branch to push to, by default main; it is made if need be.
        token: Access token; by default `HF_TOKEN`, or that of `hf auth login`.
        commit_message: Title of the commit.
        license: License on the card, such as mit; by default that of the card that is there already, else apache-2.0,
            or unknown for imported histories.
    """

    private: bool | None = None
    revision: str | None = None
    token: str | None = None
    commit_message: str | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        check_settings(self, "push")
