"""The part of a Kubernetes API that a TrainJob needs, over HTTP; its nodes really run the job's command."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
from kubernetes import client

__all__ = ["SmallCluster", "small_cluster"]


@dataclass
class SmallCluster:
    """A namespace; nodes are processes of this machine.

    `faults` are answered first: (method, status), (method, (status, message)) or (method, "cut"); with
    ("ANSWER", "lost") a job is made and nobody is told. With `disks`, each node has a `TMPDIR` of its own below that
    folder.
    """

    namespace: str = "plumbline"
    faults: list[tuple[str, Any]] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    disks: Path | None = None
    when_made: Callable[[], Any] = lambda: None
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    log: bytes = b""
    stamped: list[bytes] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    address: str = ""
    objects: Any = None
    pods: Any = None

    def run(self, job: dict[str, Any]) -> None:
        """Does what Kubeflow Trainer does of it: torch's launcher, told by `PET_` variables; the end as a condition."""
        trainer = job["spec"]["trainer"]
        given = {one["name"]: one["value"] for one in trainer.get("env", []) if "value" in one}
        pet = {"PET_NNODES": str(trainer["numNodes"]), "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"])}
        pet |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(_free_port())}
        self.log, self.stamped = b"", []
        self.nodes = [
            subprocess.Popen(
                trainer["command"],
                env=os.environ | given | pet | self._own(node),
                stdout=subprocess.PIPE if node == 0 else None,
                stderr=subprocess.STDOUT if node == 0 else None,
            )
            for node in range(trainer["numNodes"])
        ]
        if "deletionTimestamp" in job["metadata"] or job["metadata"]["name"] not in self.jobs:
            self.end()  # deleted before its pods were there
        threading.Thread(target=self._read_log, args=(self.nodes[0],), daemon=True).start()
        status = self._wait_for_nodes()
        kind, reason = ("Complete", "JobsCompleted") if status == 0 else ("Failed", "FailedJobs")
        condition = {"type": kind, "status": "True", "reason": reason, "message": f"exit status {status}"}
        self.change(job, lambda: job.update(status={"conditions": [condition]}))

    def change(self, job: dict[str, Any], how: Callable[[], Any]) -> None:
        """Changes a job, and tells who watches."""
        with self.changed:
            how()
            job["metadata"]["resourceVersion"] = str(int(job["metadata"]["resourceVersion"]) + 1)
            self.changed.notify_all()

    def delete(self, name: str) -> None:
        """Foreground deletion: the job is there, marked, until its pods are gone."""
        job = self.jobs[name]
        self.change(job, lambda: job["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z"))
        self.end()
        for process in self.nodes:
            process.wait(timeout=60)
        with self.changed:
            self.jobs.pop(name, None)
            self.changed.notify_all()

    def end(self) -> None:
        """Ends what runs on the nodes, as the deletion of their pods does."""
        for process in self.nodes:
            if process.poll() is None:
                process.terminate()

    @contextmanager
    def losing(self, node: int, *, once: Callable[[], bool]) -> Iterator[None]:
        """Within the block, a node goes away without a word as soon as that holds."""

        def watch() -> None:
            while not once():
                time.sleep(0.05)
            self._lose(node)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        yield
        watcher.join(timeout=10)
        assert not watcher.is_alive()

    def _lose(self, node: int) -> None:
        processes = psutil.Process(self.nodes[node].pid).children(recursive=True)
        for process in [*processes, self.nodes[node]]:
            process.kill()

    def _own(self, node: int) -> dict[str, str]:
        own = {"PET_NODE_RANK": str(node)}
        if self.disks is not None:
            (self.disks / f"node-{node}").mkdir(parents=True, exist_ok=True)
            own["TMPDIR"] = str(self.disks / f"node-{node}")
        return own

    def _read_log(self, first: subprocess.Popen[bytes]) -> None:
        assert first.stdout is not None
        for line in first.stdout:
            self.log += line
            self.stamped.append(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}000Z ".encode() + line)

    def _wait_for_nodes(self) -> int:
        """0 once all ended well; else the status of the first that did not, and the others are ended."""
        while True:
            ended = [process.poll() for process in self.nodes]
            failed = [status for status in ended if status]
            if failed:
                self.end()
                return failed[0]
            if None not in ended:
                return 0
            time.sleep(0.1)


@contextmanager
def small_cluster(**overrides: Any) -> Iterator[SmallCluster]:
    """A cluster, and the official client's classes on it."""
    cluster = SmallCluster(**overrides)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(cluster))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cluster.address = f"http://127.0.0.1:{server.server_port}"
    configuration = client.Configuration(host=cluster.address)
    configuration.retries = 0  # type: ignore[assignment]
    api = client.ApiClient(configuration)
    cluster.objects, cluster.pods = client.CustomObjectsApi(api), client.CoreV1Api(api)
    try:
        yield cluster
    finally:
        for process in cluster.nodes:
            if process.poll() is None:
                process.kill()
        server.shutdown()
        server.server_close()


def _handler(cluster: SmallCluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            job = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self._faulty("POST"):
                return
            name = job["metadata"]["name"]
            if name in cluster.jobs:
                self._answer(409, {"message": f"{name} already exists"})
                return
            job["metadata"] |= {"resourceVersion": "1", "uid": f"uid-{len(cluster.created)}"}
            cluster.jobs[name] = job
            cluster.created.append(json.loads(json.dumps(job)))
            threading.Thread(target=cluster.run, args=(job,), daemon=True).start()
            cluster.when_made()
            if ("ANSWER", "lost") in cluster.faults:
                cluster.faults.remove(("ANSWER", "lost"))
                self.close_connection = True
                return
            self._answer(201, job)

        def do_DELETE(self) -> None:
            if self._faulty("DELETE"):
                return
            name = self.path.rpartition("/")[2]
            options = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "{}")
            found = cluster.jobs.get(name)
            if found is None:
                self._answer(404, {"message": "not found"})
                return
            wanted = options.get("preconditions", {})
            if any(found["metadata"][field] != value for field, value in wanted.items()):
                self._answer(409, {"message": "the object has been modified"})
                return
            assert options["propagationPolicy"] == "Foreground"
            cluster.deleted.append(name)
            threading.Thread(target=cluster.delete, args=(name,), daemon=True).start()
            self._answer(200, {"kind": "Status"})

        def do_PATCH(self) -> None:
            change = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self._faulty("PATCH"):
                return
            assert self.headers["content-type"] == "application/merge-patch+json"
            found = cluster.jobs.get(self.path.rpartition("/")[2])
            if found is not None:
                cluster.change(found, lambda: found["metadata"].update(change["metadata"]))
            self._answer(200 if found else 404, found or {"message": "not found"})

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            query = parse_qs(asked.query)
            if asked.path.endswith("/log"):
                if not self._faulty("LOG"):
                    self._answer_raw(b"".join(cluster.stamped) if "timestamps" in query else cluster.log)
            elif asked.path.endswith("/pods"):
                if not self._faulty("PODS"):
                    self._answer(200, {"kind": "PodList", "apiVersion": "v1", "items": self._pods()})
            elif "watch" in query:
                if not self._faulty("WATCH"):
                    self._watch(query)
            elif not self._faulty("GET"):
                found = cluster.jobs.get(asked.path.rpartition("/")[2])
                self._answer(200 if found else 404, found or {"message": "not found"})

        def _pods(self) -> list[dict[str, Any]]:
            """The first node; a stream of its log ends with what there is, as one that is cut."""
            if not cluster.nodes:
                return []
            phase = {None: "Running", 0: "Succeeded"}.get(cluster.nodes[0].poll(), "Failed")
            return [{"metadata": {"name": "node-0-0"}, "status": {"phase": phase}}]

        def _watch(self, query: dict[str, list[str]]) -> None:
            name, since = query["fieldSelector"][0].partition("=")[2], query["resourceVersion"][0]
            until = time.monotonic() + 2.0
            self.send_response(200)
            self.end_headers()
            with cluster.changed:
                while time.monotonic() < until:
                    job = cluster.jobs.get(name)
                    if job is None or job["metadata"]["resourceVersion"] != since:
                        kind = "DELETED" if job is None else "MODIFIED"
                        self.wfile.write(json.dumps({"type": kind, "object": job or {}}).encode() + b"\n")
                        return
                    cluster.changed.wait(0.2)

        def _faulty(self, method: str) -> bool:
            cluster.calls.append(method)
            for fault in cluster.faults:
                if fault[0] == method:
                    cluster.faults.remove(fault)
                    if fault[1] == "cut":
                        self.send_response(200)
                        self.end_headers()
                        self.wfile.write(b'{"type": "MODIF')
                    else:
                        status, message = fault[1] if isinstance(fault[1], tuple) else (fault[1], f"fault {fault[1]}")
                        self._answer(status, {"message": message})
                    return True
            return False

        def _answer(self, status: int, content: Any) -> None:
            self._answer_raw(json.dumps(content).encode(), status)

        def _answer_raw(self, content: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
