"""What the three dashboards share: variables, links between them, and the state of a run as one number."""

from grafana import RUNBOOK
from panels import BLUE, GREEN, GREY, RED, YELLOW, Variable, named

STATES = {
    "starting": BLUE,
    "training": GREEN,
    "evaluating": "semi-dark-green",
    "saving": "dark-green",
    "stopping": YELLOW,
    "done": GREY,
    "failed": RED,
}
"""In the order of their numbers, from 1: of a run's nodes the one with the highest is shown."""
ENDS = ("stopping", "done", "failed")
GONE = len(STATES) + 1
STATE_NAMES = named(dict(enumerate([*STATES.items(), ("gone", "dark-red")], 1)))

RATE = "[$__rate_interval]"
"""Grafana makes it four scrapes long at least, and no shorter than the panel's shortest interval."""
TO_OVERVIEW, TO_RUN, TO_CLUSTER = "/d/nezha-overview", "/d/nezha-run", "/d/nezha-cluster"
TO_RUNBOOK = RUNBOOK
OPEN_RUN = TO_RUN + "?var-job=${__data.fields.job}&var-run=${__data.fields.run}&${__url_time_range}"
"""A table's link from a row's run to its dashboard."""

JOB = Variable("job", "nezha_run_info", "job", "Prometheus' names for what it scrapes", several=True)
RUN_NAMES = Variable("run", 'nezha_run_info{job=~"$job"}', "run", "Runs by their folders' names", several=True)
SEVERAL_RUNS = 'job=~"$job", run=~"$run"'

WATCHED = "NezhaStepStalled", "NezhaRunStalled"
"""The alerts that say that a run stands still."""


def state_of(*by: str) -> str:
    """PromQL for the number of a state while an exporter answers; of several nodes the highest."""
    numbered = (f'{number} * nezha_run_state{{RUN, state="{state}"}}' for number, state in enumerate(STATES, 1))
    return f"max by ({', '.join(by)}) ({' or '.join(numbered)}) > 0"


def last_state() -> str:
    """The same for a run, and for an hour after its end what it ended with, as docker/prometheus/rules.yml records it:
    a run whose last word was not that it stops, is done or has failed was killed.
    """
    last = 'last_over_time(run_state:nezha_run_state:max{{RUN, state="{}"}}[1h]) == 1'
    ended = (
        f"max by (job, run) ({number if state in ENDS else GONE} * ({last.format(state)}))"
        for number, state in enumerate(STATES, 1)
    )
    return " or ".join([state_of("job", "run"), *ended])


def time_left(*by: str) -> str:
    """PromQL for the seconds until the last step at the present rate of steps; nothing where none are made."""
    labels = ", ".join(by)
    left = f"max by ({labels}) (nezha_train_target_steps{{RUN}} - nezha_train_global_step{{RUN}})"
    return f"{left} / (sum by ({labels}) (rate(nezha_train_steps_total{{RUN}}{RATE})) > 0)"
