"""Where the files are that come with the package: settings, n8n's workflows, Dagster's instance.

An operator's own copy beside the strategy file is found by `Environment.own_or`.
"""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
INSTANCE_SETTINGS = "dagster.yaml"
CONFIG = "config"
WORKFLOWS = "config/n8n_workflows"


def shipped(name: str) -> Path:
    """Return a file or folder of the project by its path from the clone's root.

    An installed wheel has it inside the package, a clone beside the package.
    """
    inside = PACKAGE / name
    return inside if inside.exists() else PACKAGE.parent / name
