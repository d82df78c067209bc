"""The compose files and the Dockerfile, checked without a container engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from ruamel.yaml import YAML

from hub.broker.address import parse_address
from hub.broker.embedded import find_binary
from tests.faults.ports import free_port

ROOT = Path(__file__).parents[2]
SERVICES = ("redis", "hub1", "hub2", "worker1", "worker2", "nginx")
SENTINEL_FILE = "deploy/docker-compose.sentinel.yml"
SENTINEL_SERVICES = ("redis1", "redis2", "sentinel1", "sentinel2", "sentinel3", "hub", "worker")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    compose = YAML(typ="safe").load(ROOT / "docker-compose.yml")
    return dict(compose["services"])


def run_tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which(name, path=str(Path(sys.executable).parent))
    assert tool is not None, f"{name} is one of the development tools: run scripts/setup"
    return subprocess.run([tool, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=50)


def seconds(duration: str) -> int:
    assert duration.endswith("s")
    return int(duration.removesuffix("s"))


def flags(service: dict[str, Any]) -> dict[str, str]:
    """The options of a command line in which each takes a value."""
    _, *options = service["command"]
    return dict(zip(options[::2], options[1::2], strict=True))


@pytest.fixture(scope="module")
def guarded() -> dict[str, Any]:
    """The services of the file with sentinels."""
    compose = YAML(typ="safe").load(ROOT / SENTINEL_FILE)
    return dict(compose["services"])


@pytest.mark.parametrize("name", ["docker-compose.yml", SENTINEL_FILE])
def test_the_compose_file_follows_the_compose_specification(name: str) -> None:
    result = run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", name)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_specification_check_notices_a_mistake(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yml"
    wrong.write_text("services: {hub: {image: headrace, portz: ['80:80']}}\n")
    assert run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(wrong)).returncode == 1


def test_the_dockerfile_has_no_findings() -> None:
    result = run_tool("hadolint", "Dockerfile")
    assert result.returncode == 0, result.stdout + result.stderr


def test_two_hubs_two_workers_redis_and_nginx_are_there(services: dict[str, Any]) -> None:
    assert tuple(services) == SERVICES
    for number in "12":
        assert services[f"hub{number}"]["command"][:2] == ["headrace", "hub"]
        assert services[f"worker{number}"]["command"] == ["headrace", "worker"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_watched_and_restarted(services: dict[str, Any], name: str) -> None:
    assert services[name]["healthcheck"]["test"]
    assert services[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize(("name", "drain_s"), [("hub1", 30), ("hub2", 30), ("worker1", 130), ("worker2", 130)])
def test_a_stop_waits_for_the_drain(services: dict[str, Any], name: str, drain_s: int) -> None:
    assert seconds(services[name]["stop_grace_period"]) > drain_s


def test_redis_writes_every_second_and_never_evicts(services: dict[str, Any]) -> None:
    options = flags(services["redis"])
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "everysec"
    assert options["--maxmemory-policy"] == "noeviction"


def test_only_nginx_is_reachable_and_by_default_from_this_machine_alone(services: dict[str, Any]) -> None:
    assert [name for name in SERVICES if "ports" in services[name]] == ["nginx"]
    assert services["nginx"]["ports"] == ["${HEADRACE_BIND:-127.0.0.1}:${HEADRACE_PORT:-8080}:80"]
    assert services["redis"]["networks"] == ["data"]


def test_no_secret_is_in_the_file(services: dict[str, Any]) -> None:
    given: dict[str, str | None] = {}
    for name in SERVICES:
        given |= services[name].get("environment", {})
    secret = {variable: value for variable, value in given.items() if re.search("SECRET|KEY|TOKEN|PASS", variable)}
    assert sorted(secret) == ["ANTHROPIC_API_KEY", "HEADRACE_JWT_SECRET", "OPENAI_API_KEY"]
    assert str(secret.pop("HEADRACE_JWT_SECRET")).startswith("${HEADRACE_JWT_SECRET:?")  # no start without
    assert set(secret.values()) == {None}  # passed through where they are set


def test_every_image_is_pinned_to_a_version(services: dict[str, Any]) -> None:
    images = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    images += [services[name]["image"] for name in ("redis", "nginx")]
    assert len(images) == 4
    for image in images:
        assert re.search(r":\d+\.\d+\.\d+", image), image


def test_the_image_does_not_run_as_root() -> None:
    users = re.findall(r"^USER (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert users
    assert users[-1].split(":")[0].isdigit()
    assert users[-1].split(":")[0] != "0"


def test_everything_that_the_image_copies_is_sent_to_the_engine() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for name in " ".join(copied).split():
        assert (ROOT / name).exists()
        assert f"!{name}" in ignore


# -- with sentinels


def test_a_primary_a_replica_and_three_sentinels_are_there(guarded: dict[str, Any]) -> None:
    assert tuple(guarded) == SENTINEL_SERVICES
    assert guarded["redis1"]["environment"]["FOLLOW"] == ""
    assert guarded["redis2"]["environment"]["FOLLOW"] == "replicaof redis1 6379"


@pytest.mark.parametrize("name", SENTINEL_SERVICES)
def test_every_guarded_service_is_hardened_watched_and_restarted(guarded: dict[str, Any], name: str) -> None:
    service = guarded[name]
    assert service["healthcheck"]["test"] and service["restart"] == "unless-stopped"
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert ("ports" in service) == (name == "hub")
    assert re.search(r":\d+\.\d+\.\d+|headrace:local", service["image"])
    if name.startswith(("redis", "sentinel")):
        assert service["user"] == "valkey"
        assert service["networks"] == ["data"]
        assert service["volumes"] == [f"{name}-data:/data"]


def test_hub_and_worker_name_all_sentinels_and_wait_for_them(guarded: dict[str, Any]) -> None:
    sentinels = [name for name in SENTINEL_SERVICES if name.startswith("sentinel")]
    for name in ("hub", "worker"):
        address = parse_address(guarded[name]["environment"]["HEADRACE_REDIS_URL"])
        assert address.sentinels == tuple((sentinel, 26379) for sentinel in sentinels)
        assert f"sentinel monitor {address.service} redis1 6379 2" in guarded["sentinel1"]["command"][2]
        assert sorted(guarded[name]["depends_on"]) == sentinels
    assert guarded["worker"]["healthcheck"]["test"] == ["CMD", "python", "-m", "hub.broker"]
    assert seconds(guarded["hub"]["stop_grace_period"]) > 30 and seconds(guarded["worker"]["stop_grace_period"]) > 130


def test_the_files_that_the_containers_write_make_a_set_up_that_fails_over(
    guarded: dict[str, Any], tmp_path: Path
) -> None:
    """The commands as they stand, with this machine's server, loopback addresses and free ports."""
    ports = {name: free_port() for name in SENTINEL_SERVICES[:5]}
    processes = {}
    try:
        for name, port in ports.items():
            processes[name] = subprocess.Popen(
                ["sh", "-c", on_this_machine(guarded[name], name, ports, tmp_path)],
                env={**os.environ, **on_loopback(guarded[name].get("environment", {}), ports), "HOSTNAME": "127.0.0.1"},
                stdout=subprocess.DEVNULL,
            )
            until(lambda port=port: ask(port, "PING") == "PONG")  # type: ignore[misc]
        until(lambda: ask(ports["redis1"], "ROLE")[2] != [])
        assert ask(ports["redis1"], "CONFIG", "GET", "maxmemory-policy")[1] == "noeviction"
        assert ask(ports["redis2"], "CONFIG", "GET", "appendonly")[1] == "yes"
        sentinels = [name for name in ports if name.startswith("sentinel")]
        until(lambda: all(str(ask(ports[name], "SENTINEL", "CKQUORUM", "headrace"))[:2] == "OK" for name in sentinels))
        until(lambda: len(ask(ports["sentinel1"], "SENTINEL", "REPLICAS", "headrace")) == 1)
        ask(ports["sentinel1"], "SENTINEL", "FAILOVER", "headrace")
        until(lambda: ask(ports["redis2"], "ROLE")[0] == "master")
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def on_this_machine(service: dict[str, Any], name: str, ports: dict[str, int], tmp_path: Path) -> str:
    """The command of a container, for a process."""
    data = tmp_path / name
    data.mkdir()
    script = str(service["command"][2]).replace("$$", "$").replace("${HEADRACE_REDIS_MEMORY:-1gb}", "64mb")
    script = script.replace("/data", str(data)).replace("valkey-server", str(find_binary(os.environ).path))
    script = script.replace("port 26379", f"port {ports[name]}")
    script = script.replace("redis1 6379", f"127.0.0.1 {ports['redis1']}")
    return script.replace("save ", f"port {ports[name]}\nbind 127.0.0.1\nsave ")


def on_loopback(environment: dict[str, str], ports: dict[str, int]) -> dict[str, str]:
    return {name: value.replace("redis1 6379", f"127.0.0.1 {ports['redis1']}") for name, value in environment.items()}


def ask(port: int, *words: str) -> Any:
    """The reply, or "" where nobody answers yet."""
    try:
        with redis.Redis(port=port, protocol=2, socket_timeout=2, decode_responses=True) as client:
            client.response_callbacks.clear()
            return client.execute_command(*words)
    except redis.RedisError:
        return ""


def until(condition: Callable[[], bool], within: float = 30.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
