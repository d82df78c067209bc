"""docker-compose.yml and the Dockerfile, checked without a container engine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
SERVICES = ("redis", "hub1", "hub2", "worker1", "worker2", "nginx")


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


def test_the_compose_file_follows_the_compose_specification() -> None:
    result = run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")
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
