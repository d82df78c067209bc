"""`headrace doctor`: what it finds, and that it shows no secret."""

from __future__ import annotations

import resource

import pytest

from hub.broker.embedded import EmbeddedRedis
from hub.cli import doctor
from hub.cli.keys import KEY_VARIABLES
from tests.cli.command import environment, run
from workers.providers import registry


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


def test_the_names_of_keys_are_those_that_workers_look_at() -> None:
    assert KEY_VARIABLES == registry.KEY_VARIABLES
