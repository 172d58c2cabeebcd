"""Settings of the review service."""

from __future__ import annotations

import ipaddress
from typing import Literal

from pydantic import Field, field_validator, model_validator

from components.shared.pseudonyms import PSEUDONYM_KEY
from components.shared.settings import StrictModel

__all__ = ["EVERYBODY", "SECRET_VARIABLE", "KfpTrigger", "ReleaseTrigger", "ReviewSettings", "RoleSettings"]

SECRET_VARIABLE = PSEUDONYM_KEY
"""Signs sessions and forms, and keys the pseudonyms: it must stay the same, or raters become strangers."""

EVERYBODY = "*"


class RoleSettings(StrictModel):
    """Who may do what: logins, `group:<name>`, or `*` for everybody who is signed in.

    Attributes:
        rater: Judge pairs, blind.
        release_manager: See the evidence; approve, reject, roll back; close, export and import batches.
        auditor: See everything that a release manager sees, and change nothing.
    """

    rater: tuple[str, ...] = ()
    release_manager: tuple[str, ...] = ()
    auditor: tuple[str, ...] = ()


class KfpTrigger(StrictModel):
    """Release runs on Kubeflow Pipelines.

    Attributes:
        host: Address of its API; empty inside a cluster, where the client finds it.
        namespace: Namespace of the runs.
        pipeline: Uploaded pipeline for candidates (`plumbline compile --pipeline release`).
        live_pipeline: The same for live models.
        experiment: Experiment of the runs.
        service_account: Service account of the steps; KFP's default if empty. It must be able to promote.
    """

    host: str = ""
    namespace: str = "kubeflow"
    pipeline: str = "plumbline-release"
    live_pipeline: str = "plumbline-release-live"
    experiment: str = "plumbline"
    service_account: str = ""


class ReleaseTrigger(StrictModel):
    """What starts the release run of a batch that has closed; with neither, `plumbline release` on this machine.

    Attributes:
        command: A command; `--model-name`, `--version`, `--order` and `--attempt` are appended to it.
        kfp: Kubeflow Pipelines.
    """

    command: tuple[str, ...] = ()
    kfp: KfpTrigger | None = None

    @model_validator(mode="after")
    def _is_one(self) -> ReleaseTrigger:
        if self.command and self.kfp:
            raise ValueError("give command or kfp, not both")
        return self


class ReviewSettings(StrictModel):
    """How people sign in, and what they may do.

    Attributes:
        host: Address to listen on.
        port: Port to listen on.
        login: `local`: one-time links that the command prints. `header`: a proxy in front (Kubeflow's gateway, an OIDC
            proxy) signs people in and names them in a header.
        user_header: That header.
        user_prefix: What stands before the login in the header's value, such as `accounts.google.com:`.
        groups_header: Header with the groups of the user, comma-separated; none if empty.
        trusted_peers: Addresses (CIDR) whose headers are believed: those of the proxy, and of nobody else.
        roles: Who may do what.
        simulated: Logins of programs that stand in for raters; their votes are marked.
        ai: Logins of AI judges; their votes are marked.
        session_hours: How long a local sign-in lasts.
        secure_cookies: Cookies over HTTPS only.
        watch_seconds: How often it looks for batches that have ended, starts their release runs and sends notices; 0
            leaves all that to a schedule (`plumbline release --due`).
        release_trigger: What starts a release run.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8090, ge=0, le=65535)
    login: Literal["local", "header"] = "local"
    user_header: str = "kubeflow-userid"
    user_prefix: str = ""
    groups_header: str = ""
    trusted_peers: tuple[str, ...] = ()
    roles: RoleSettings = RoleSettings()
    simulated: tuple[str, ...] = ()
    ai: tuple[str, ...] = ()
    session_hours: float = Field(default=12.0, gt=0.0)
    secure_cookies: bool = False
    watch_seconds: float = Field(default=15.0, ge=0.0)
    release_trigger: ReleaseTrigger = ReleaseTrigger()

    @field_validator("trusted_peers")
    @classmethod
    def _are_networks(cls, peers: tuple[str, ...]) -> tuple[str, ...]:
        for peer in peers:
            try:
                ipaddress.ip_network(peer)
            except ValueError as error:
                raise ValueError(f"{peer!r} is no network, such as 10.0.0.0/8") from error
        return peers

    @model_validator(mode="after")
    def _headers_come_from_somewhere(self) -> ReviewSettings:
        if self.login == "header" and not self.trusted_peers:
            raise ValueError(
                "trusted_peers is empty: name the proxy's addresses, or anybody could claim to be anybody with a header"
            )
        if set(self.simulated) & set(self.ai):
            raise ValueError("a login is either simulated or ai")
        return self
