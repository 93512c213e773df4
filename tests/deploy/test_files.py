"""What can be checked of the deployment's files without a container engine."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from ekoyka import observability

ROOT = Path(__file__).parents[2]


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return listed.stdout.splitlines()


@pytest.mark.parametrize("lock", ["requirements.lock", "tests/requirements.lock"])
def test_every_pinned_package_has_hashes(lock: str) -> None:
    blocks = re.split(r"\n(?=[a-z0-9])", (ROOT / lock).read_text())
    packages = [block for block in blocks if re.match(r"[a-z0-9][a-z0-9._-]*(\[[a-z,]+\])?==", block)]

    assert len(packages) > 50
    assert [block.split(" ")[0] for block in packages if "--hash=sha256:" not in block] == []


def test_the_test_lock_pins_what_runs_to_the_same_versions() -> None:
    def pins(lock: str) -> set[str]:
        return set(re.findall(r"^[a-z0-9._-]+==\S+", (ROOT / lock).read_text(), re.MULTILINE))

    assert pins("requirements.lock") <= pins("tests/requirements.lock")


def test_no_registry_is_named_and_no_universal_lock_is_kept() -> None:
    hosts = [
        ".".join(parts)
        for parts in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("npmjs", "com"))
    ]
    named = [
        name
        for name in tracked()
        if (ROOT / name).is_file() and any(host.encode() in (ROOT / name).read_bytes() for host in hosts)
    ]
    package_lock = json.loads((ROOT / "ekoyka/explorer/package-lock.json").read_text())

    assert named == []
    assert "uv.lock" not in tracked()
    assert [name for name, item in package_lock["packages"].items() if "resolved" in item] == []
    assert [name for name, item in package_lock["packages"].items() if name and "integrity" not in item] == []


def test_what_the_image_copies_is_there_and_let_through() -> None:
    sources = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    let_through = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    ]

    for source in " ".join(sources).split():
        assert (ROOT / source).exists(), source
        assert any(source == item or source.startswith(f"{item}/") for item in let_through), source


def test_the_image_runs_unprivileged_with_a_health_check() -> None:
    final = (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2]

    assert re.search(r"^USER \d+$", final, re.MULTILINE)
    assert "HEALTHCHECK" in final
    assert "/healthz" in final


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/ekoyka.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ekoyka_[a-z_]+", target["expr"])
    }
    text = observability.metrics_text(
        pools={"read": (0, 1)}, beds={"FREE": 1}, plans={"hit": 1}, feed_connected=True, many_processes=False
    ).decode()
    known = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))

    assert len(asked) >= 9
    assert {name for name in asked if name.removesuffix("_bucket") not in known} == set()
    assert "ekoyka:8000" in (ROOT / "deploy/prometheus.yml").read_text()


def test_prometheus_is_let_in_by_the_token_that_the_server_wants() -> None:
    compose = (ROOT / "compose.yml").read_text()
    [secret] = re.findall(
        r"credentials_file: /run/secrets/(\w+)", (ROOT / "deploy/prometheus.yml").read_text()
    )

    assert re.search(
        rf"^secrets:\n  {secret}:\n    environment: EKOYKA_METRICS_TOKEN$", compose, re.MULTILINE
    )
    services = dict(re.findall(r"^  (\w+):\n((?:    .*\n)+)", compose, re.MULTILINE))
    assert f"- {secret}" in services["prometheus"]
    assert "EKOYKA_METRICS_TOKEN: ${" in services["ekoyka"]


def test_secrets_have_no_default_in_compose() -> None:
    compose = (ROOT / "compose.yml").read_text()

    for secret in ("EKOYKA_TOKEN_KEYS", "EKOYKA_METRICS_TOKEN", "POSTGRES_PASSWORD", "GRAFANA_PASSWORD"):
        uses = re.findall(rf"\$\{{{secret}(.)(.)", compose)
        assert uses, secret
        assert set(uses) == {(":", "?")}
