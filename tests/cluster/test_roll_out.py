"""Another version rolled out while a backfill runs; last, as it leaves the cluster changed."""

from tests.cluster.conftest import Cluster, commit, run_of
from tests.cluster.test_faults import NOTHING_LOST


def test_another_version_is_rolled_out_in_the_middle_of_a_backfill(deployed: Cluster) -> None:
    image = deployed.pod("daemon")["spec"]["containers"][0]["image"]
    dockerfile = deployed.clone / "deploy" / "Dockerfile"
    dockerfile.write_text(f"{dockerfile.read_text()}LABEL version=next\n")
    commit(deployed.clone, "the next version")
    with (
        deployed.table.row(
            "the script with another version in the middle of a backfill",
            f"runs in flight keep their image; {NOTHING_LOST}",
        ) as row,
        deployed.backfill(days=6),
    ):
        before = {run_of(pod) for pod in deployed.run_pods()}
        deployed.script()
        assert deployed.pod("daemon")["spec"]["containers"][0]["image"] != image
        kept = {
            run_of(pod)
            for pod in deployed.pods("run")
            if pod["spec"]["containers"][0]["image"] == image
        }
        assert before <= kept
        row["found"] = f"so; {len(before)} runs were in flight"
