"""NVFlare as it is deployed: a provisioned server and clients over gRPC with mutual TLS, and a job that is submitted.

usage: nvflare_peer.py provision|submit FOLDER HOST PORT        FOLDER holds job.json
"""

import json
import subprocess
import sys
from pathlib import Path

import yaml

HERE, ADMIN, PROJECT = Path(__file__).parent, "admin@measured.org", "measured"


def provision(folder: Path, host: str, port: int) -> None:
    """Make the startup kits: ``FOLDER/workspace/measured/prod_00``."""
    sites = [f"site{k}" for k in range(json.loads((folder / "job.json").read_text())["sites"])]
    participants = [{"name": host, "type": "server", "org": PROJECT, "fed_learn_port": port}]
    participants += [{"name": site, "type": "client", "org": PROJECT} for site in sites]
    participants += [{"name": ADMIN, "type": "admin", "org": PROJECT, "role": "project_admin"}]
    lighter = "nvflare.lighter.impl"
    builders = [
        {"path": f"{lighter}.workspace.WorkspaceBuilder", "args": {"template_file": ["master_template.yml"]}},
        {"path": f"{lighter}.static_file.StaticFileBuilder", "args": {"config_folder": "config", "scheme": "grpc"}},
        {"path": f"{lighter}.cert.CertBuilder"},
        {"path": f"{lighter}.signature.SignatureBuilder"},
    ]
    project = {"api_version": 3, "name": PROJECT, "description": PROJECT}
    path = folder / "project.yml"
    path.write_text(yaml.safe_dump(project | {"participants": participants, "builders": builders}))
    command = [Path(sys.executable).with_name("nvflare"), "provision", "-p", path, "-w", folder / "workspace"]
    subprocess.run(command, check=True)


def submit(folder: Path) -> None:
    """Submit the job, and wait for its end."""
    sys.path.insert(0, str(HERE))
    from nvflare.client.config import ExchangeFormat
    from nvflare.fuel.flare_api.flare_api import new_secure_session
    from nvflare.fuel.utils.constants import FrameworkType
    from nvflare.job_config.api import FedJob
    from nvflare.job_config.script_runner import ScriptRunner
    from nvflare_controller import TimedFedAvg

    job = FedJob(name=PROJECT, min_clients=json.loads((folder / "job.json").read_text())["sites"])
    job.to_server(TimedFedAvg(str(folder / "job.json")))
    runner = ScriptRunner(
        script=str(HERE / "nvflare_client.py"),
        framework=FrameworkType.NUMPY,
        server_expected_format=ExchangeFormat.NUMPY,
    )
    job.to_clients(runner)
    job.export_job(str(folder / "jobs"))
    kit = folder / "workspace" / PROJECT / "prod_00" / ADMIN
    session = new_secure_session(username=ADMIN, startup_kit_location=str(kit), timeout=60)
    try:
        number = session.submit_job(str(folder / "jobs" / PROJECT))
        print(session.monitor_job(number, timeout=1500), flush=True)
        print(session.get_job_meta(number), flush=True)
    finally:
        session.close()


if __name__ == "__main__":
    if sys.argv[1] == "provision":
        provision(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        submit(Path(sys.argv[2]))
