"""What an operator starts: the configurations of the servers, and docker/compose.yaml, which no engine runs here.

Each server's own tool reads its configuration, and the Compose specification's schema the file; what one file says of
another (names, ports, folders, settings of the recipe) is compared.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nezha_ds.config import load
from nezha_ds.train.recipe import Recipe
from tests.helpers.ranks import REPOSITORY
from tests.monitoring import rules

DOCKER = REPOSITORY / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ROUTES = DOCKER / "alertmanager/alertmanager.yml"
MODULES = Path(sys.executable).parent


def printed(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_server_accepts_its_configuration():
    assert "SUCCESS" in printed("promtool", "check", "config", DOCKER / "prometheus/prometheus.yml")
    assert "SUCCESS" in printed("amtool", "check-config", ROUTES)


@pytest.mark.parametrize(("severity", "receiver"), [("critical", "at-once"), ("warning", "daytime"), ("", "daytime")])
def test_critical_alerts_wake_somebody_and_warnings_do_not(severity, receiver):
    told = printed("amtool", "config", "routes", "test", f"--config.file={ROUTES}", f"severity={severity}")
    assert told.strip() == receiver


def test_what_is_muted_are_alerts_that_there_are():
    inhibited = yaml.safe_load(ROUTES.read_text())["inhibit_rules"]
    alerts = set(rules.alerts())
    for rule in inhibited:
        assert rule["equal"] == ["job", "run"]
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            ((name, value),) = re.findall(r'^(\w+) =~? "(.*)"$', matcher)
            assert name in ("severity", "alertname")
            assert name == "severity" or any(re.fullmatch(value, alert) for alert in alerts)


def test_compose_is_as_its_specification_asks():
    checker = MODULES / "check-jsonschema"
    assert "ok" in printed(checker, "--builtin-schema", "vendor.compose-spec", DOCKER / "compose.yaml")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_and_nobody_but_this_machine_reaches_it(name):
    service = SERVICES[name]
    assert re.search(r":(v?\d+\.\d+\.\d+|cpu)$", service["image"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["healthcheck"]["test"]
    # The image of our own says itself who it is.
    user = service.get("user") or re.findall(r"^USER (\S+)", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)[-1]
    assert int(user.partition(":")[0]) > 0


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_finds_what_is_mounted(name):
    for volume in SERVICES[name]["volumes"]:
        source = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", volume).partition(":")[0]
        assert (DOCKER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]


def test_servers_look_for_each_other_where_they_are():
    scrape = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    (pagers,) = scrape["alerting"]["alertmanagers"][0]["static_configs"]
    (source,) = (DOCKER / "grafana/provisioning/datasources").glob("*.y*ml")
    (grafana,) = yaml.safe_load(source.read_text())["datasources"]
    for address in (*pagers["targets"], grafana["url"].removeprefix("http://")):
        name, _, port = address.partition(":")
        assert SERVICES[name]["ports"] == [f"127.0.0.1:{port}:{port}"]
        assert f":{port}/" in SERVICES[name]["healthcheck"]["test"][-1]
    assert grafana["uid"] == "prometheus"
    assert grafana["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]


def test_rules_are_looked_at_as_often_as_targets_are_scraped():
    """Or the last word of a run that ends would be missed."""
    times = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())["global"]
    assert times["evaluation_interval"] == times["scrape_interval"]


def test_the_demo_is_found_by_its_targets():
    command = SERVICES["training"]["command"]
    settings = [word.removeprefix("--set=") for word in command[command.index("--") + 1 :]]
    recipe = load(Recipe, REPOSITORY / "launch/recipes/demo.toml", settings)
    assert SERVICES["training"]["volumes"] == [f"runs:{recipe.exporter.targets}"]
    assert "${NEZHA_TARGETS:-runs}:/etc/prometheus/targets:ro" in SERVICES["prometheus"]["volumes"]
    assert recipe.exporter.announce == "training"
    assert f":{recipe.exporter.port}/healthz" in SERVICES["training"]["healthcheck"]["test"][-1]
    assert {recipe.run.folder.parent, Path(recipe.data.shards).parent} == {recipe.exporter.targets}
