"""What a Kubernetes cluster makes of a run's Job: whether the run will start.

Dagster's monitoring asks for runs that have started; one that has not it gives up by a time-out
alone, which has to be long enough for a pod that waits for room. What is done with the answer
belongs in `monitoring.dagster_instance`. Imported only where a cluster starts the runs: its client
is an extra.
"""

from collections.abc import Iterable, Sequence

from kubernetes.client import BatchV1Api, CoreV1Api, V1Job, V1Pod

# The reasons with which a container waits for a person. `ErrImagePull` is not among them: it is the
# first failure, and becomes `ImagePullBackOff` where the next one fails too.
FOR_A_PERSON = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ImagePullBackOff",
    "InvalidImageName",
}

# The second comes first, and stays alone as long as a pod of it ends: on a lost node for ever.
FAILED = {"Failed", "FailureTarget"}


def obstacle(run_id: str, namespace: str) -> str | None:
    """Return why the run will never start; None where it may, as one that waits for room.

    Its Jobs are deleted then: one whose container waits for a person would start beside the next
    attempt. Raises what the cluster's client raises.
    """
    of_run = f"dagster/run-id={run_id}"
    jobs = BatchV1Api().list_namespaced_job(namespace, label_selector=of_run).items
    pods = CoreV1Api().list_namespaced_pod(namespace, label_selector=of_run).items
    why = obstacle_of(jobs, pods)
    if why is not None:
        for job in jobs:
            BatchV1Api().delete_namespaced_job(
                job.metadata.name, namespace, propagation_policy="Background"
            )
    return why


def obstacle_of(jobs: Sequence[V1Job], pods: Iterable[V1Pod]) -> str | None:
    """Return why a run with these Jobs and pods will never start, None where it may."""
    if not jobs:
        return "its Job is gone"
    # By Job: one that has failed for good has both conditions.
    failed = {
        job.metadata.name: condition
        for job in jobs
        for condition in job.status.conditions or []
        if condition.type in FAILED and condition.status == "True"
    }
    if len(failed) == len(jobs):
        (*_, last) = failed.values()
        return f"its Job has failed ({last.reason}: {last.message})"
    waiting = [
        status.state.waiting
        for pod in pods
        for status in [
            *(pod.status.init_container_statuses or []),
            *(pod.status.container_statuses or []),
        ]
        if status.state is not None and status.state.waiting is not None
    ]
    return next(
        (
            f"its container can't start ({state.reason}: {state.message})"
            for state in waiting
            if state.reason in FOR_A_PERSON
        ),
        None,
    )
