"""The part of a Kubernetes API that a TrainJob needs, over HTTP; its one node really runs the job's command."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes import client

__all__ = ["SmallCluster", "small_cluster"]


@dataclass
class SmallCluster:
    """A namespace with one node. `faults` are answered first: (method, status), or (method, "cut")."""

    namespace: str = "plumbline"
    faults: list[tuple[str, Any]] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    log: bytes = b""
    changed: threading.Condition = field(default_factory=threading.Condition)
    objects: Any = None
    pods: Any = None

    def run(self, job: dict[str, Any]) -> None:
        """Does what Kubeflow Trainer does of it: torch's launcher, told by `PET_` variables; the end as a condition."""
        trainer = job["spec"]["trainer"]
        processes = trainer["numNodes"] * trainer["numProcPerNode"]
        given = {one["name"]: one["value"] for one in trainer.get("env", []) if "value" in one}
        pet = {"PET_NNODES": "1", "PET_NPROC_PER_NODE": str(processes), "PET_STANDALONE": "1"}
        self.process = subprocess.Popen(
            trainer["command"], env=os.environ | given | pet, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log += line
        status = self.process.wait()
        kind, reason = ("Complete", "JobsCompleted") if status == 0 else ("Failed", "FailedJobs")
        condition = {"type": kind, "status": "True", "reason": reason, "message": f"exit status {status}"}
        with self.changed:
            job["status"] = {"conditions": [condition]}
            job["metadata"]["resourceVersion"] = str(int(job["metadata"]["resourceVersion"]) + 1)
            self.changed.notify_all()


@contextmanager
def small_cluster(**overrides: Any) -> Iterator[SmallCluster]:
    """A cluster, and the official client's classes on it."""
    cluster = SmallCluster(**overrides)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(cluster))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    configuration = client.Configuration(host=f"http://127.0.0.1:{server.server_port}")
    configuration.retries = 0  # type: ignore[assignment]
    api = client.ApiClient(configuration)
    cluster.objects, cluster.pods = client.CustomObjectsApi(api), client.CoreV1Api(api)
    try:
        yield cluster
    finally:
        if cluster.process is not None and cluster.process.poll() is None:
            cluster.process.kill()
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
            job["metadata"]["resourceVersion"] = "1"
            cluster.jobs[name] = job
            cluster.created.append(json.loads(json.dumps(job)))
            threading.Thread(target=cluster.run, args=(job,), daemon=True).start()
            self._answer(201, job)

        def do_DELETE(self) -> None:
            if self._faulty("DELETE"):
                return
            name = self.path.rpartition("/")[2]
            found = cluster.jobs.pop(name, None)
            cluster.deleted.append(name)
            if cluster.process is not None:
                cluster.process.terminate()
            with cluster.changed:
                cluster.changed.notify_all()
            self._answer(200 if found else 404, {"kind": "Status"})

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            query = parse_qs(asked.query)
            if asked.path.endswith("/log"):
                self._answer_raw(cluster.log)
            elif asked.path.endswith("/pods"):
                pods = [{"metadata": {"name": "node-0-0"}, "status": {"phase": "Succeeded"}}] if cluster.log else []
                self._answer(200, {"kind": "PodList", "apiVersion": "v1", "items": pods})
            elif "watch" in query:
                if not self._faulty("WATCH"):
                    self._watch(query)
            elif not self._faulty("GET"):
                found = cluster.jobs.get(asked.path.rpartition("/")[2])
                self._answer(200 if found else 404, found or {"message": "not found"})

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
                        self._answer(fault[1], {"message": f"fault {fault[1]}"})
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
