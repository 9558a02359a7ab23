"""Flower and NVFlare as they are deployed, on the links of a federation: a server, K clients, TLS.

Each is installed from the registry into an environment of its own. Their programs lie in ``peer_programs``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from _federated import PORT, Process, agree
from _namespaces import Namespaces
from common import environment, replica
from peers import PROGRAMS, installed

APP = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "measured"
version = "1.0.0"
license = "Apache-2.0"
dependencies = ["flwr"]
[tool.hatch.build.targets.wheel]
packages = ["."]
[tool.flwr.app]
publisher = "measured"
[tool.flwr.app.components]
serverapp = "flower_message:server"
clientapp = "flower_message:client"
[tool.flwr.app.config]
job = "{job}"
"""
CONNECTION = """[superlink]
default = "measured"
[superlink.measured]
address = "{host}:{port}"
root-certificates = "{ca}"
"""

_MARK = "COLEARN_MEASURED"  # a variable by which what a peer has started is known


class Deployment:
    """Processes of a peer, in the places of the coordinator and of the sites.

    Args:
        environments: folder of the peers' environments.
        peer: name of this one's.
        net: the links; None: loopback.
        sites: K.
        folder: for its files.
    """

    def __init__(self, environments: Path, peer: str, net: Namespaces | None, sites: int, folder: Path) -> None:
        self.python = installed(environments, peer)
        self.net, self.sites, self.folder = net, sites, folder
        self.host = "coordinator" if net else "localhost"
        self._running: list[Process] = []
        # An arena of malloc per thread would lose gigabytes of a server's copies to fragments.
        self._variables = environment() | {"PYTHONPATH": "", "MALLOC_ARENA_MAX": "2", "FLWR_TELEMETRY_ENABLED": "0"}
        self._variables[_MARK] = str(folder)
        self._variables["PATH"] = f"{self.python.parent}{os.pathsep}{self._variables['PATH']}"

    def tool(self, name: str) -> Path:
        return self.python.with_name(name)

    def start(self, place: int, name: str, command: Sequence[object], more: Mapping[str, str] | None = None) -> Process:
        """Start a command at site ``place``; K: at the coordinator."""
        before = self.net.inside(place) if self.net else ()
        process = Process(command, self.folder / f"{name}.log", before, self._variables | dict(more or {}))
        self._running.append(process)
        return process

    def found(self, submitted: Process, patience: float = 900) -> dict[str, Any]:
        """What the job wrote, once it has."""
        answer, end = self.folder / "answer.json", time.monotonic() + patience
        while not answer.exists():
            if submitted.code is not None:
                end = min(end, time.monotonic() + 5)
            if time.monotonic() > end:
                logs = "\n".join(f"{process.log}:\n{process.said()[-1500:]}" for process in self._running)
                sys.exit(f"no answer:\n{logs}")
            time.sleep(0.2)
        time.sleep(0.2)
        content = json.loads(answer.read_text())
        return content | {"seconds": content["seconds"][1:]}  # the first makes the connections, and starts programs

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in reversed(self._running):
            process.end()
        # Some of what they start leaves their session.
        mark = f"{_MARK}={self.folder}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    os.kill(int(folder.name), signal.SIGKILL)


@contextlib.contextmanager
def _named(net: Namespaces | None, relayed: bool) -> Iterator[None]:
    if net is None:
        yield
        return
    server = net.address(len(net.hosts) - 1)
    addresses = ["127.0.0.1" if relayed else server] * (len(net.hosts) - 1) + [server]
    with net.naming("coordinator", addresses):
        yield


def _job(folder: Path, chosen: Any) -> Path:
    shapes = [tuple(p.shape) for p in replica(chosen.parameters).parameters()]
    content = {"sites": chosen.sites, "rounds": chosen.rounds + 1, "shapes": shapes}
    path = folder / "job.json"
    path.write_text(json.dumps(content | {"answer": str(folder / "answer.json")}))
    return path


def flower(net: Namespaces | None, relayed: bool, chosen: Any, folder: Path) -> dict[str, Any]:
    """A SuperLink, K SuperNodes, and an app by `flwr run`. TLS; clients without certificates, as they have none."""
    job = _job(folder, chosen)
    with (
        _named(net, relayed),
        Deployment(chosen.peers, "flower-message", net, chosen.sites, folder) as made,
    ):
        agree(folder, ["nobody"], made.host)
        own = folder / "coordinator"
        tls = ["--ssl-ca-certfile", own / "ca.pem", "--ssl-certfile", own / "certificate.pem"]
        tls += ["--ssl-keyfile", own / "key.pem"]
        app, home = folder / "app", folder / "home"
        app.mkdir()
        home.mkdir()
        (app / "pyproject.toml").write_text(APP.format(job=job))
        (app / "flower_message.py").write_text((PROGRAMS / "flower_message.py").read_text())
        (home / "config.toml").write_text(CONNECTION.format(host=made.host, port=PORT, ca=own / "ca.pem"))
        link = [made.tool("flower-superlink"), "--host", "0.0.0.0", "--port", PORT, *tls]
        made.start(chosen.sites, "superlink", [*link, "--disable-runtime-dependency-installation"])
        time.sleep(4)
        for k in range(chosen.sites):
            node = [made.tool("flower-supernode"), "--superlink", f"{made.host}:{PORT}", "--port", PORT + 1 + k]
            node += ["--root-certificates", own / "ca.pem", "--node-config", f"number={k}"]
            made.start(k, f"supernode{k}", node, {"FLWR_HOME": str(folder / f"home{k}")})
        run = made.start(
            chosen.sites, "run", [made.tool("flwr"), "run", app, "measured", "--stream"], {"FLWR_HOME": str(home)}
        )
        return made.found(run)


def nvflare(net: Namespaces | None, relayed: bool, chosen: Any, folder: Path) -> dict[str, Any]:
    """A provisioned server and K clients over gRPC with mutual TLS, and a job."""
    _job(folder, chosen)
    with _named(net, relayed), Deployment(chosen.peers, "nvflare", net, chosen.sites, folder) as made:
        program = [made.python, PROGRAMS / "nvflare_peer.py"]
        provision = made.start(chosen.sites, "provision", [*program, "provision", folder, made.host, PORT])
        while provision.code is None:
            time.sleep(0.1)
        kits = folder / "workspace" / "measured" / "prod_00"
        common = ["secure_train=true", "org=measured", "config_folder=config"]
        fed = "nvflare.private.fed.app"
        server = ["-m", f"{fed}.server.server_train", "-m", kits / made.host, "-s", "fed_server.json", "--set", *common]
        made.start(chosen.sites, "server", [made.python, "-u", *server])
        for k in range(chosen.sites):
            client = ["-m", f"{fed}.client.client_train", "-m", kits / f"site{k}", "-s", "fed_client.json", "--set"]
            made.start(k, f"client{k}", [made.python, "-u", *client, *common, f"uid=site{k}"])
        time.sleep(10)
        return made.found(made.start(chosen.sites, "submit", [*program, "submit", folder, made.host, PORT]))
