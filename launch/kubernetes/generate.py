"""What launch/kubernetes/ has from elsewhere, copied to where kustomize may read it: `make generated` runs this.

kustomize opens no file above a kustomization's folder, so the recipe, the DeepSpeed JSON and Prometheus' rules are
there twice. The second time they are made here, and a test compares.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MANIFESTS = Path("launch/kubernetes")

RULE = """\
# docker/prometheus/rules.yml as the Prometheus operator takes it: `make generated` writes this file.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: nezha
spec:
"""


def generated(root: Path = ROOT) -> dict[Path, str]:
    """Path in the repository to what it is to hold."""
    rules = (root / "docker/prometheus/rules.yml").read_text(encoding="utf-8").splitlines()
    return {
        MANIFESTS / "base/recipe.toml": (root / "launch/recipes/nezha-base-wwm.toml").read_text(encoding="utf-8"),
        MANIFESTS / "base/ds_config.json": (root / "ds_configs/lamb-14400-bf16.json").read_text(encoding="utf-8"),
        MANIFESTS / "monitoring/rule.yaml": RULE + "".join(f"  {line}".rstrip() + "\n" for line in rules),
    }


def main() -> int:
    """Write them."""
    for path, text in generated().items():
        (ROOT / path).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
