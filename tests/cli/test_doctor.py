"""`headrace doctor`: what it finds, and that it shows no secret."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from hub.broker.embedded import EmbeddedRedis
from hub.cli import doctor
from hub.cli.demo import surroundings
from tests.cli.command import environment, run


def test_a_machine_without_settings_is_ready_to_run() -> None:
    done = run("doctor", "--port", "18080")
    assert done.returncode == 0, done.stdout
    for name in ("Python", "Redis", "eviction", "persistence", "clock", "provider keys", "JWT secret", "open files"):
        assert name in done.stdout
    assert "noeviction" in done.stdout
    assert "Ready to run" in done.stdout


def test_what_is_wrong_is_said_with_what_to_do_and_without_any_secret() -> None:
    settings = {
        "HEADRACE_REDIS_URL": "redis://me:hunter2@127.0.0.1:1/0",
        "HEADRACE_JWT_SECRET": "tooshort",
        "OPENAI_API_KEY": "sk-verysecret",
        "OPENAI_BASE_URL": "nonsense",
        "HEADRACE_DRAIN_S": "verysecret",
        "ANTHROPIC_BASE_URL": "https://me:hunter3@proxy.example/v1",
    }
    done = run("doctor", environ=environment(**settings))
    assert done.returncode == 1
    assert "HEADRACE_REDIS_URL does not answer" in done.stdout
    assert "HEADRACE_DRAIN_S: input should be" in done.stdout
    assert "8 bytes" in done.stdout
    assert "OPENAI_API_KEY" in done.stdout
    assert "OPENAI_BASE_URL is no address" in done.stdout
    assert "https://proxy.example" in done.stdout
    for secret in ("hunter2", "hunter3", "tooshort", "verysecret"):
        assert secret not in done.stdout + done.stderr


def test_a_server_that_may_drop_answers_fails() -> None:
    arguments = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]
    with EmbeddedRedis(arguments=arguments) as redis:
        done = run("doctor", environ=environment(HEADRACE_REDIS_URL=redis.url))
    assert done.returncode == 1
    assert "maxmemory-policy allkeys-lru" in done.stdout
    assert "appendonly no" in done.stdout


@pytest.mark.parametrize(
    ("check", "verdict"),
    [
        (doctor.check_python((3, 10, 14)), "fail"),
        (doctor.check_python((3, 11, 0)), "ok"),
        (doctor.judge_version({"redis_version": "6.0.16"}, "somewhere"), "fail"),
        (doctor.judge_version({"redis_version": "6.2.0"}, "somewhere"), "ok"),
        (doctor.judge_version({"redis_version": "7.2.4", "valkey_version": "8.0.1"}, "somewhere"), "ok"),
        (doctor.judge_policy(None, None), "warn"),
        (doctor.judge_policy("volatile-lru", "0"), "warn"),
        (doctor.judge_persistence("yes", True), "ok"),
        (doctor.judge_persistence("no", True), "warn"),
        (doctor.judge_clock(1000.0, 1001.0), "ok"),
        (doctor.judge_clock(1000.0, 1030.0), "warn"),
        (doctor.check_files(128), "fail"),
        (doctor.check_files(1024), "warn"),
        (doctor.check_files(resource.RLIM_INFINITY), "ok"),
        (doctor.check_secret({"HEADRACE_AUTH": "none"}), "ok"),
        (doctor.check_secret({}), "warn"),
    ],
)
def test_a_check_judges(check: doctor.Check, verdict: str) -> None:
    assert check.verdict == verdict
    assert (check.verdict == "ok") or check.advice


OWN = """
[providers.local]
format = "openai"
base_url = "http://127.0.0.1:11434/v1"

[providers.cloud]
format = "openai"
base_url = "https://cloud.example/v1"
base_url_variable = "CLOUD_URL"
key = ["CLOUD_KEY"]
"""


def test_providers_of_a_headrace_toml_are_looked_at_as_a_worker_does(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text(OWN)
    done = run("doctor", environ=environment(CLOUD_URL="nonsense"), cwd=tmp_path)
    assert "headrace.toml, with local, cloud of its own" in done.stdout
    assert "local (needs no key)" in done.stdout and "set CLOUD_KEY for cloud" in done.stdout
    assert "CLOUD_URL is no address" in done.stdout
    done = run("doctor", environ=environment(CLOUD_KEY="sk-verysecret"), cwd=tmp_path)
    assert done.returncode == 0 and "cloud (CLOUD_KEY)" in done.stdout and "verysecret" not in done.stdout


def test_a_headrace_toml_that_no_worker_would_take_is_shown_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.toml"
    path.write_text('[providers.local]\nformat = "openai"\nbase_url = "localhost:11434"\n')
    for command in (["doctor"], ["dev", "--port", "0"]):
        done = run(*command, environ=environment(HEADRACE_CONFIG=str(path)))
        assert done.returncode == 1
        said = " ".join((done.stdout + done.stderr).split())
        assert "elsewhere.toml:3: providers.local.base_url must begin with http:// or https://" in said


def test_the_demonstration_takes_nobody_s_key_and_nobody_s_catalog() -> None:
    kept = surroundings({
        "ANTHROPIC_API_KEY": "a", "ANTHROPIC_AUTH_TOKEN": "b", "OPENAI_API_KEY": "c", "OPENAI_BASE_URL": "d",
        "ANTHROPIC_BASE_URL": "e", "HEADRACE_CONFIG": "f", "PATH": "/bin",
    })  # fmt: skip
    assert kept == {"PATH": "/bin", "HEADRACE_LEDGER": "off", "HEADRACE_CONFIG": os.devnull}
