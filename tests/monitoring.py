"""`make monitoring`: a pipeline at work, Ray's dashboard, and a Prometheus that reads both.

Asks one thing after the other until Ctrl-C, or for so many seconds. Prometheus is Debian's package
of that name; what it keeps goes with it. Grafana, if there is one, shows configs/monitoring.
"""

import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from specpipe.actors import Config, Pipeline, SamplingParams
from specpipe.completion import Completion
from specpipe.prompts import own_questions

FOLDER = Path(__file__).parents[1] / "configs" / "monitoring"
DASHBOARD = FOLDER / "grafana" / "dashboards" / "specpipe.json"
PORT = 9090
AT_ONCE = 2
RAY_FOLDER = "/tmp/ray"
PANELS = {"$pipeline": ".*", "$__rate_interval": "1m"}
"""What Grafana puts in the place of its variables."""

SAID = """
  Ray's dashboard  {dashboard}, which asks for the token that `ray get-auth-token` prints;
                   Actors says who is who, and where, and their logs tell of each request
  Prometheus       http://localhost:{port}/graph?g0.expr=ray_specpipe_device_busy&g0.tab=0
  Grafana          SPECPIPE_DASHBOARDS={folder}/grafana/dashboards \\
                   GF_PATHS_PROVISIONING={folder}/grafana/provisioning grafana server
  a terminal       specpipe top

Ctrl-C ends it all.
"""


class Prometheus:
    """A server that runs; asks it."""

    def __init__(self, port: int) -> None:
        self._address = f"http://localhost:{port}/api/v1/query"

    def ask(self, query: str) -> dict[tuple[str, ...], float]:
        """What a query gives, by the values of its labels, in the order of the labels' names."""
        words = urllib.parse.urlencode({"query": query})
        with urllib.request.urlopen(f"{self._address}?{words}", timeout=10) as answer:
            results: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return {
            tuple(value for _, value in sorted(each["metric"].items())): float(each["value"][1])
            for each in results
        }

    def total(self, metric: str, **labels: str) -> float:
        """The sum over all series of a metric."""
        chosen = ", ".join(f'{name}="{value}"' for name, value in labels.items())
        return sum(self.ask(f"sum(ray_specpipe_{metric}{{{chosen}}})").values())


@contextmanager
def prometheus(port: int, ray_folder: str = RAY_FOLDER) -> Iterator[Prometheus]:
    """Our configuration served, for the Ray that keeps its sessions there."""
    program = shutil.which("prometheus")
    assert program, "there is no prometheus: `apt install prometheus`"
    with tempfile.TemporaryDirectory(prefix="prometheus-") as folder:
        config = (FOLDER / "prometheus.yml").read_text().replace(RAY_FOLDER, ray_folder)
        (Path(folder) / "prometheus.yml").write_text(config)
        command = [
            *(program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}"),
            *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"),
        ]
        process = subprocess.Popen(command)
        try:
            yield Prometheus(port)
        finally:
            process.terminate()
            process.wait(20)


def panels() -> Iterator[tuple[str, str]]:
    """Each query of the Grafana dashboard, as it asks Prometheus, with the title of its panel."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            query: str = target["expr"]
            for variable, value in PANELS.items():
                query = query.replace(variable, value)
            assert not re.search(r"\$\w", query), query
            yield panel["title"], query


def load(pipeline: Pipeline, seconds: float) -> list[Completion]:
    """Ask for so long, a few things at once; the answers."""
    texts = itertools.cycle(question.text for question in own_questions())
    params = SamplingParams(max_tokens=160, temperature=0.7)
    deadline = time.monotonic() + seconds
    answers: list[Future[Completion]] = []
    while time.monotonic() < deadline:
        if sum(not each.done() for each in answers) < AT_ONCE:
            answers.append(pipeline.submit(next(texts), params))
        time.sleep(0.05)
    return [each.result() for each in answers]


def main(seconds: float) -> None:
    config = Config().override(ray={"dashboard": True}, log={"level": "info"})
    with Pipeline.launch(config) as pipeline, prometheus(PORT):
        print(SAID.format(dashboard=pipeline.dashboard, port=PORT, folder=FOLDER), flush=True)
        load(pipeline, seconds)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(float(sys.argv[1]) if len(sys.argv) > 1 else 1e9)
