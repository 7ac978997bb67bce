"""One run: what it learns, and whether its numbers are sound."""

from common import RATE
from panels import RED, Query, series

LEARNING = [
    series(
        "Loss in training",
        "Mean loss since the last log step in nats, by objective: masked tokens, pairs, spans, and their sum.",
        "It rises; it does not fall from 10 in the first thousand steps; gaps, where it was no number.",
        Query("max by (objective) (nezha_train_loss{RUN})", "{{objective}}"),
        unit="none",
        alerts=["NezhaLossRising", "NezhaLossNotFinite"],
    ),
    series(
        "Loss on held-out text",
        "Loss of the evaluations in nats, by objective and, in a mixture, by text.",
        "It rises while the loss in training falls: the text is learned by heart.",
        Query("max by (split, objective) (nezha_eval_loss{RUN})", "{{objective}} {{split}}"),
        unit="none",
        points=True,
        alerts=["NezhaEvaluationNotFinite"],
    ),
    series(
        "Accuracy",
        "Share of right predictions, by objective: in training as it goes, on held-out text at evaluations.",
        "Masked tokens stay below 0.1 after a tenth of the steps: the model has learned frequencies only.",
        Query("max by (objective) (nezha_train_accuracy_ratio{RUN})", "{{objective}}"),
        Query("max by (split, objective) (nezha_eval_accuracy_ratio{RUN})", "{{objective}} {{split}}"),
        unit="percentunit",
        least=0,
    ),
    series(
        "Learning rate",
        "The rate of the step.",
        "It is not what the schedule says: another JSON, or a restart with other steps.",
        Query("max by (run) (nezha_train_learning_rate{RUN})", "rate"),
        unit="sci",
        least=0,
    ),
    series(
        "Predictions",
        "Masked tokens and pairs a second, and how many an evaluation makes: what the shares above stand on.",
        "An evaluation of a few hundred predictions is noise in the second digit.",
        Query(f"sum by (objective) (rate(nezha_train_predictions_total{{RUN}}{RATE}))", "{{objective}} a second"),
        Query("max by (split, objective) (nezha_eval_predictions{RUN})", "{{objective}} {{split}}"),
        log=10,
    ),
    series(
        "Since the last evaluation",
        "How old the held-out numbers are, by text.",
        "Older than train.eval_every steps take.",
        Query("time() - max by (split) (nezha_eval_last_timestamp_seconds{RUN})", "{{split}}"),
        unit="s",
        least=0,
    ),
]
"""Losses, accuracies, the learning rate, and what they stand on."""

NUMERICS = [
    series(
        "Norm of gradients",
        "Global norm before clipping, at the last step before each log step.",
        "Ten times that of the last hour: a loss spike follows, or the rate is too high.",
        Query("max by (run) (nezha_train_grad_norm{RUN})", "norm"),
        unit="none",
        log=10,
        alerts=["NezhaGradientNormHigh"],
    ),
    series(
        "Loss scale",
        "fp16's dynamic scale, on an axis of powers of two. Absent in bf16 and fp32.",
        "It falls to 1: gradients overflow at any scale, and the run ends with exit code 76.",
        Query("max by (run) (nezha_train_loss_scale{RUN})", "scale"),
        unit="none",
        log=2,
        alerts=["NezhaLossScaleLow"],
    ),
    series(
        "Overflows",
        "Share of steps whose update was dropped because a gradient overflowed; in fp16 about one in a thousand, "
        "as the scale is tried out again.",
        "Above 0.05 for a quarter of an hour.",
        Query(
            f"sum(rate(nezha_train_overflow_steps_total{{RUN}}{RATE})) "
            f"/ (sum(rate(nezha_train_steps_total{{RUN}}{RATE})) > 0)",
            "overflows",
        ),
        unit="percentunit",
        steps=[(0.05, RED)],
        least=0,
        alerts=["NezhaOverflowsFrequent"],
    ),
    series(
        "Spikes",
        "Steps of this attempt with a loss far above those before, and those whose update was left out.",
        "More than one a day: look at the text at these steps (train.ledger) and at the rate.",
        Query("max(nezha_train_loss_spikes_total{RUN})", "spikes"),
        Query("max(nezha_train_skipped_spikes_total{RUN})", "left out"),
        unit="none",
        least=0,
        alerts=["NezhaLossSpikes"],
    ),
    series(
        "No numbers",
        "Losses and gradients that were NaN or infinite, in training and in evaluations.",
        "Any: the run stops before the update; `nezha-ds replay` shows where it begins.",
        Query("max(nezha_train_nonfinite_loss_total{RUN})", "losses"),
        Query("max(nezha_train_nonfinite_gradient_total{RUN})", "gradients"),
        Query("sum(nezha_eval_nonfinite_loss_total{RUN})", "evaluations"),
        unit="none",
        steps=[(1, RED)],
        least=0,
        alerts=["NezhaLossNotFinite"],
    ),
]
"""Gradients, fp16's scale, spikes, and numbers that are none."""

OF_PARTS = "at the last update by LAMB, by part of the model: the median tensor's, the smallest and the largest"
LAMB = [
    series(
        title,
        f"{shown} {OF_PARTS}. Empty with another optimizer.",
        bad,
        Query(f'max by (part) ({metric}{{RUN, quantile="median"}})', "{{part}}"),
        Query(f'min by (part) ({metric}{{RUN, quantile="min"}})', "{{part}} least"),
        Query(f'max by (part) ({metric}{{RUN, quantile="max"}})', "{{part}} most"),
        unit="none",
        log=10,
    )
    for title, shown, metric, bad in (
        (
            "Trust ratios",
            "Trust ratio",
            "nezha_lamb_trust_ratio",
            "All at a bound; a part a hundred times above the others: its update is tiny, or its weights explode.",
        ),
        ("Norms of weights", "Norm of a tensor", "nezha_lamb_weight_norm", "It grows without end, or falls to 0."),
        (
            "Norms of updates",
            "Norm of a tensor's update, before ratio and rate,",
            "nezha_lamb_update_norm",
            "0: the tensor gets no gradient; a jump: gradients of another size.",
        ),
    )
]
"""LAMB's norms and ratios; empty with another optimizer."""
