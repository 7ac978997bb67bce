"""What lies in a run folder and is read by whoever only looks, by name."""

METRICS_FILE = "metrics.jsonl"
RECIPE, DS_CONFIG, ENVIRONMENT = "recipe.toml", "ds_config.json", "environment.json"
ATTEMPTS = "attempts.jsonl"
