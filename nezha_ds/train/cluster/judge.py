"""From a survey to a verdict: a table of nodes, what is wrong with each, and the cure. Pure: no clock, disk, rank.

Two kinds of limits. Some are absolute, with their reason beside them in `Limits`. Speeds are held against the median of
the other nodes: what a card or a disk ought to do nobody tells us, but a node that does half of what its like do is
named. Of two nodes the slower is; a link between two nodes alone names neither.

A failure makes a node unfit; a warning is told and lets a run begin.
"""

from nezha_ds.train.cluster.columns import COLUMNS
from nezha_ds.train.cluster.survey import Survey
from nezha_ds.train.cluster.verdict import Limits, Note, Row, Verdict, View, few, span


def judge(survey: Survey, limits: Limits | None = None) -> Verdict:
    """Every column's look at every node, and what concerns all."""
    view = View(survey, limits or Limits())
    rows = tuple(Row(node, {name: look(view, node) for name, look in COLUMNS.items()}) for node in view.nodes)
    return Verdict(survey, rows, tuple(_together(view)))


def _together(view: View) -> list[Note]:
    survey, notes = view.survey, list[Note]()
    if survey.missing:
        names = dict.fromkeys(survey.expected[rank] for rank in survey.missing if rank in survey.expected)
        what = f"rank {span(survey.missing)} of {survey.world_size} did not come" + (
            f", of {few([*names], most=16)}" if names else ""
        )
        cure = "see in the launcher's log how these ranks ended, and whether their node reaches rank 0's"
        notes.append(Note("failure", what, cure))
    if " " in (shards := view.usual.get("shards", "")):
        notes.append(Note("failure", f"shards: {shards}", "prepare them first, where every node sees them"))
    if any(one.unreachable for one in survey.networks.values()):
        notes.append(Note("failure", "sums and links were not tried, as ranks could not meet", "mend the cards first"))
    if any(one.wrong for one in survey.traffics.values()) and not view.blamed:
        kinds = dict.fromkeys(kind for one in survey.traffics.values() for kind in one.wrong)
        what = f"all-reduce gives wrong sums ({few([*kinds])}), which lead to no node"
        notes.append(Note("failure", what, "run doctor on half of the nodes, and on the other half"))
    settings = {tuple(sorted(one.settings.items())) for one in survey.networks.values()}
    if len(settings) > 1:
        what = "GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME differ between nodes"
        notes.append(Note("warning", what, "export the same everywhere, unless cards have other names there"))
    return notes
