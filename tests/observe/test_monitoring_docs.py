"""docs/monitoring.md keeps its word: a real Prometheus scrapes each exporter that it configures, as it says."""

import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from nezha_ds.config import build
from nezha_ds.observe.exporter import ExporterSettings, check_exporter
from tests.helpers.processes import wait_for
from tests.helpers.prometheus import prometheus
from tests.observe.exporters import address, exporting

TEXT = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")
FOLDERS = ("/etc/nezha", "/shared/nezha/targets", "/var/lib/node_exporter/textfile")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The text of the docs, with folders of the tests' own for those that it names."""
    folder = tmp_path_factory.mktemp("docs")
    text = TEXT
    for number, name in enumerate(FOLDERS):
        own = folder / str(number)
        own.mkdir()
        text = text.replace(name, str(own))
    return folder, text


def blocks(language, text):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def files(here):
    """What the docs' own commands make."""
    folder, text = here
    program = f"{shlex.quote(sys.executable)} -m nezha_ds.cli"
    for script in blocks("sh", text):
        if "curl" not in script:
            code = f'set -eu\nnezha-ds() {{ {program} "$@"; }}\n{script}'
            subprocess.run(["bash", "-c", code], check=True, capture_output=True)
    return folder


def settings_of(toml):
    """As the recipe would give them, but on the loopback and on a free port."""
    chosen = build(ExporterSettings, tomllib.loads(toml)["exporter"], "docs/monitoring.md")
    check_exporter(chosen)
    return chosen.model_copy(update={"host": "127.0.0.1", "port": 0}).model_dump()


def test_each_way_is_one_that_prometheus_takes(here, files, tmp_path):
    """Sections with a recipe and a scrape configuration: both sides run, and all series arrive."""
    sections = [part for part in re.split(r"^##+ ", here[1], flags=re.MULTILINE) if "```yaml" in part]
    jobs = []
    with ExitStack() as running:
        for number, section in enumerate(sections):
            (toml,), (scrape,) = blocks("toml", section), blocks("yaml", section)
            exporter = running.enter_context(exporting(tmp_path / str(number), f"run{number}", **settings_of(toml)))
            host, port = address(exporter)
            (job,) = yaml.safe_load(re.sub(r'"[\w.]+:29600"', f'"{host}:{port}"', scrape))["scrape_configs"]
            jobs.append(job | {"job_name": f"nezha.{number}"})
        config = {"scrape_configs": jobs, "alerting": {}}
        server = running.enter_context(prometheus(tmp_path / "prometheus", config=config))
        subprocess.run(["promtool", "check", "config", server.folder / "config.yml"], check=True, capture_output=True)
        expected = {(f"nezha.{number}", f"run{number}") for number in range(len(sections))}

        def found():
            series = server.query('nezha_run_state{state="starting"} == 1')
            return {(one["metric"]["job"], one["metric"]["run"]) for one in series}

        wait_for(lambda: found() == expected, server.process)
        assert not server.query('{exported_run!=""}')
        # What discovery adds is on the target's own series.
        assert server.query('up{node="0", run="run4"} == 1')
    assert len(sections) == 5


def test_the_recipe_without_a_port_is_understood(here):
    (toml,) = [block for block in blocks("toml", here[1]) if "textfile" in block]
    assert settings_of(toml)["enabled"] is False


def test_it_names_every_setting_and_no_other():
    named = set(re.findall(r"^(\w+) = ", "\n".join(blocks("toml", TEXT)), re.MULTILINE))
    named |= {name for name in re.findall(r"`(\w+)\b", TEXT) if name in ExporterSettings.model_fields}
    assert named == set(ExporterSettings.model_fields)
