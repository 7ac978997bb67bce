"""Every format and every masking trains: one rank, real DeepSpeed, twelve steps."""

import pytest

from nezha_ds.observe.events import Evaluation, Record
from tests.helpers import runs

pytestmark = [pytest.mark.ranks, pytest.mark.usefixtures("warm")]


@pytest.mark.parametrize(
    ("settings", "objectives"),
    [
        (("data.format=segment-pair", "objective.nsp=1.0", "masking.method=n-gram"), {"mlm", "nsp"}),
        (
            ("data.format=sentence-pair", "objective.nsp=0.5", "masking.method=span", "objective.span=1.0"),
            {"mlm", "nsp", "span"},
        ),
        (
            ("data.format=segment-pair", "data.pairing=sentence-order", "objective.sop=1.0"),
            {"mlm", "sop"},
        ),
        (("data.format=doc-sentences", "data.short_rate=0.1", "masking.method=character"), {"mlm"}),
    ],
)
def test_it_trains(tmp_path, embedded, settings, objectives):
    run = runs.make(tmp_path, embedded, *settings)
    run.finish()
    events = run.events()
    told = [event for event in events if isinstance(event, Record | Evaluation)]
    for figures in ("losses", "accuracies", "predictions"):
        assert {name for event in told for name in getattr(event, figures)} == objectives
    assert all(count > 0 for event in told for count in event.predictions.values())
    records = [event for event in events if isinstance(event, Record)]
    assert records[-1].step == 12
    assert 0.12 < records[-1].masked_ratio < 0.16
    assert {"embeddings", "attention", "feed_forward", "vectors"} <= records[-1].lamb.keys()
