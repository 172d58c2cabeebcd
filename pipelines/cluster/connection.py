"""The Kubeflow Pipelines API, for commands that a person or a script waits for.

Every call has a time limit. What only reads is tried again when the server is busy or the line breaks; what writes is
sent once, and a caller who lost the answer looks whether it was done. Errors say what is wrong and what to do, also
where a login page or a proxy answers in the API's place.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components.shared.errors import InputError, PlumblineError

__all__ = ["KFP", "AnswerLostError", "ApiError", "Connection", "NotFoundError", "named"]

_HOST_VARIABLE = "KF_PIPELINES_ENDPOINT"  # as KFP's own client
_TOKEN_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"  # as KFP's own client
_POD_TOKEN = "/var/run/secrets/kubeflow/pipelines/token"
_COOKIE_VARIABLE = "PLUMBLINE_KFP_COOKIE"
_TRIES = 4
_FIRST_PAUSE_SECONDS = 0.5
_PAGE = 100

_ADVICE = {
    400: "Where KFP has several users, give --namespace. Else: is it a KFP 2.x server?",
    401: f"Sign in: give --token-file (or {_TOKEN_VARIABLE}), or the session's cookie in {_COOKIE_VARIABLE}.",
    403: "Ask for the right: on a Kubeflow platform the role kubeflow-edit has it. Is --namespace the one you work in? "
    "To run as a service account of its own needs the verb `use` on it too, since KFP 2.18 (k8s/README.md).",
    404: "Check the id and --host.",
    409: "It is there already; list what there is, and take another name.",
    429: "The server is busy; try again later.",
}


class ApiError(PlumblineError):
    """The API refused, or does not work.

    Attributes:
        status: HTTP status; None when there was no answer.
    """

    def __init__(self, problem: str, *, status: int | None = None, where: str | None = None, hint: str | None = None):
        super().__init__(problem, where=where, hint=hint)
        self.status = status


class NotFoundError(ApiError):
    """There is no such thing."""


class AnswerLostError(ApiError):
    """The request may have been carried out; its answer did not come."""


@dataclass(frozen=True)
class Connection:
    """Where the API is, and who calls.

    Attributes:
        host: Its address.
        namespace: Of runs, where the server has several users; empty where it has one.
        token_file: File with a bearer token, read at every call, since tokens in pods change.
        ca_cert: File with the server's certificate authority.
        timeout_seconds: Longest time that one call may take.
    """

    host: str
    namespace: str = ""
    token_file: str | None = None
    ca_cert: str | None = None
    timeout_seconds: float = 30.0

    @classmethod
    def find(
        cls,
        host: str | None,
        namespace: str | None,
        token_file: str | None = None,
        ca_cert: str | None = None,
        timeout_seconds: float = 30.0,
    ) -> Connection:
        """From options, else the environment, else what a pod of the cluster has.

        Raises:
            InputError: No address is known, it is none, or the token's file cannot be read.
        """
        host = host or os.environ.get(_HOST_VARIABLE) or _address_in_cluster()
        if not host:
            raise InputError(
                "no address of Kubeflow Pipelines is known.",
                where="--host",
                hint=f"Give --host or {_HOST_VARIABLE}. From outside the cluster: kubectl port-forward -n kubeflow "
                "svc/ml-pipeline 8888:8888, then --host http://localhost:8888.",
            )
        host = host if "://" in host else f"https://{host}"
        if urlsplit(host).scheme not in ("http", "https") or not urlsplit(host).netloc:
            raise InputError("is not an http or https address.", where=f"--host {host}")
        token_file = (
            token_file or os.environ.get(_TOKEN_VARIABLE) or (_POD_TOKEN if Path(_POD_TOKEN).exists() else None)
        )
        for file in (token_file, ca_cert):
            if file and not Path(file).is_file():
                raise InputError("no such file.", where=file, hint="Check --token-file and --ca-cert.")
        return cls(host.rstrip("/"), namespace or "", token_file, ca_cert, timeout_seconds)


class KFP:
    """Kubeflow Pipelines' API.

    Args:
        connection: Where it is.
        pause_seconds: Pause before the first repetition; it doubles.
    """

    def __init__(self, connection: Connection, *, pause_seconds: float = _FIRST_PAUSE_SECONDS) -> None:
        import kfp_server_api

        configuration: Any = kfp_server_api.Configuration(host=connection.host)
        if connection.ca_cert:
            configuration.ssl_ca_cert = connection.ca_cert
        configuration.retries = False  # ours say which calls may be repeated
        client: Any = kfp_server_api.ApiClient(configuration, cookie=os.environ.get(_COOKIE_VARIABLE))
        self.connection = connection
        self._client = client
        self._pause = pause_seconds
        self.experiments = kfp_server_api.ExperimentServiceApi(client)
        self.health = kfp_server_api.HealthzServiceApi(client)
        self.pipelines = kfp_server_api.PipelineServiceApi(client)
        self.recurring = kfp_server_api.RecurringRunServiceApi(client)
        self.runs = kfp_server_api.RunServiceApi(client)
        self.uploads = kfp_server_api.PipelineUploadServiceApi(client)

    def read(self, call: Callable[..., Any], *arguments: Any, what: str, **options: Any) -> Any:
        """A call that changes nothing: tried again while the server is busy or the line breaks.

        Args:
            call: A method of one of the generated APIs.
            *arguments: Its arguments.
            what: What is asked for, for errors.
            **options: Its options.

        Raises:
            ApiError: It was refused, or did not work in the end.
        """
        for attempt in range(_TRIES):
            try:
                return self.write(call, *arguments, what=what, **options)
            except ApiError as error:
                again = error.status is None or error.status == 429 or error.status >= 500
                if not again or attempt == _TRIES - 1:
                    raise
                time.sleep(self._pause * 2**attempt)
        raise AssertionError("unreachable")

    def write(self, call: Callable[..., Any], *arguments: Any, what: str, **options: Any) -> Any:
        """A call that is sent once.

        Raises:
            NotFoundError: There is no such thing.
            AnswerLostError: No answer, or half of one: it may have been carried out.
            ApiError: It was refused.
        """
        from kfp_server_api.exceptions import ApiException
        from urllib3.exceptions import HTTPError, NewConnectionError, SSLError

        self._sign()
        where = f"{self.connection.host}, {what}"
        timeout = (min(10.0, self.connection.timeout_seconds), self.connection.timeout_seconds)
        try:
            answer = call(*arguments, _request_timeout=timeout, **options)
        except ApiException as error:
            raise _refused(error, where) from error
        except SSLError as error:
            hint = "Give --ca-cert, the file with the authority that signed the server's certificate."
            raise ApiError(f"no trusted TLS connection: {_cause(error)}.", where=where, hint=hint) from error
        except NewConnectionError as error:
            hint = "Is the address right, and does a port-forward still run?"
            raise ApiError(f"cannot be reached: {_cause(error)}.", where=where, hint=hint) from error
        except (HTTPError, OSError) as error:
            hint = "Try again; for a slow server give a longer --timeout."
            raise AnswerLostError(f"no whole answer came: {_cause(error)}.", where=where, hint=hint) from error
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise _not_the_api(where) from error
        if "json" not in (self._client.last_response.getheader("content-type") or ""):
            raise _not_the_api(where)  # the generated client makes an empty answer of a page
        return answer

    def pages(self, call: Callable[..., Any], field: str, *, what: str, **options: Any) -> Iterator[Any]:
        """Every item of a listing, page by page."""
        token = ""
        while True:
            answer = self.read(call, what=what, page_size=_PAGE, page_token=token, **options)
            yield from getattr(answer, field) or []
            token = answer.next_page_token
            if not token:
                return

    def settle_namespace(self, usual: str | None) -> None:
        """Takes the environment's namespace where the server has several users and none was named.

        A server with one user knows no namespaces, and one with several refuses a pipeline or a run that belongs to
        none, or takes it for everybody's.

        Args:
            usual: Of the profile.
        """
        if not usual or self.connection.namespace:
            return
        if self.read(self.health.healthz_service_get_healthz, what="health").multi_user:
            self.connection = replace(self.connection, namespace=usual)

    def scope(self) -> dict[str, str]:
        """The namespace as an option of a listing; none on a server with one user."""
        return {"namespace": self.connection.namespace} if self.connection.namespace else {}

    def experiment(self, name: str) -> str:
        """Id of an experiment, made if it is not there yet."""
        import kfp_server_api

        if (found := self._find_experiment(name)) is not None:
            return found
        body = kfp_server_api.V2beta1Experiment(display_name=name, namespace=self.connection.namespace or None)
        try:
            made = self.write(
                self.experiments.experiment_service_create_experiment, body, what=f"make experiment {name}"
            )
        except ApiError as error:  # made by somebody else between the two calls, or made and the answer lost
            if error.status != 409 and not isinstance(error, AnswerLostError):
                raise
            if (found := self._find_experiment(name)) is None:
                raise
            return found
        return made.experiment_id

    def _find_experiment(self, name: str) -> str | None:
        listing = self.experiments.experiment_service_list_experiments
        found = self.pages(listing, "experiments", what=f"find experiment {name}", filter=named(name), **self.scope())
        return next((one.experiment_id for one in found if one.display_name == name), None)

    def _sign(self) -> None:
        if self.connection.token_file:
            try:
                token = Path(self.connection.token_file).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise InputError(f"cannot be read: {error.strerror}.", where=self.connection.token_file) from error
            self._client.set_default_header("authorization", f"Bearer {token}")


def named(name: str) -> str:
    """A filter of listings: things of this name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _refused(error: Any, where: str) -> ApiError:
    status = error.status or 0
    if status in (301, 302, 303, 307, 308):
        return _not_the_api(where)
    kind = NotFoundError if status == 404 else ApiError
    said = _message(error.body)
    if status >= 500:
        hint = "The server has a fault; try again, then look at its log: kubectl logs -n kubeflow deploy/ml-pipeline."
    else:
        hint = _ADVICE.get(status, "Check the request.")
    return kind(f"answers {status} {error.reason or ''}".strip() + f"{said}.", status=status, where=where, hint=hint)


def _message(body: Any) -> str:
    """What a refusal says, in one line."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body or "")
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = {}
    said = str(parsed.get("message") or parsed.get("error") or "") if isinstance(parsed, dict) else ""
    said = " ".join(said.split())[:300].rstrip(".")
    return f": {said}" if said else ""


def _not_the_api(where: str) -> ApiError:
    return ApiError(
        "answers, but not as the Kubeflow Pipelines API does: a login page or another service?",
        where=where,
        hint=f"Check --host; behind a login give --token-file, or the session's cookie in {_COOKIE_VARIABLE}.",
    )


def _cause(error: BaseException) -> str:
    """The innermost reason, without urllib3's wrapping."""
    text = str(getattr(error, "reason", None) or error)
    return text.split(": ", 1)[-1].rstrip(".") if "object at 0x" in text else text.rstrip(".")


def _address_in_cluster() -> str | None:
    """KFP's service, where this process runs in a pod."""
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        return None
    namespace = os.environ.get("KFP_NAMESPACE", "kubeflow")
    return f"http://ml-pipeline.{namespace}.svc.cluster.local:8888"
