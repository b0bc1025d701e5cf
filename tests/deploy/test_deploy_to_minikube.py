"""The script's whole course, with stand-ins for minikube and kubectl that keep what they did."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.deploy.conftest import BIN, DEPLOY, ROOT, SECRETS

DISCORD = "https://discord.example/api/webhooks/1/planted"
TOOLS = ("base64", "bash", "cat", "cut", "dirname", "git", "grep", "mktemp", "od", "paste", "rm",
         "sed", "sha256sum", "sleep", "stat", "tail", "tr", "wc")  # fmt: skip
BEGIN = """#!/usr/bin/env bash
set -euo pipefail
printf '%s\\n' "${0##*/} $*" >>"$STATE/calls"
if [[ -e $STATE/fail && "${0##*/} $*" == $(cat "$STATE/fail") ]]; then
    echo "it says why" >&2
    exit 3
fi
"""
MINIKUBE = f"""{BEGIN}
[[ $1 == --profile ]] && shift 2
case $* in
    status) [[ -e $STATE/started ]] ;;
    start*) : >"$STATE/started" ;;
    "image ls") cat "$STATE/images" 2>/dev/null || true ;;
    "image build"*) [[ -e $STATE/blind ]] || echo "docker.io/library/$4" >>"$STATE/images" ;;
    *) exit 9 ;;
esac
"""
KUBECTL = f"""{BEGIN}
[[ $1 != kustomize ]] || exec "$KUBECTL" "$@"
shift 4
kept() {{ # kept NAME: the input under that name; how kubectl calls the difference
    cat >"$STATE/new"
    if [[ ! -e $STATE/$1 ]]; then echo created
    elif [[ $(cat "$STATE/$1") == "$(cat "$STATE/new")" ]]; then echo unchanged
    else echo configured; fi
    cat "$STATE/new" >"$STATE/$1"
}}
case $* in
    "create secret generic "*)
        file=${{5#--from-env-file=}}
        [[ $(stat -c %a "$file") == 600 ]]
        echo "secret $4"
        cat "$file" ;;
    "apply --filename -")
        read -r kind name || true
        if [[ $kind == secret ]]; then echo "secret/$name $(kept "secret-$name")"
        else echo "all of it $(kept manifests)"; fi ;;
    "apply --filename "*) [[ -e $3 ]] ;;
    "get secret "*)
        [[ -e $STATE/secret-$3 ]] || exit 0
        key=${{6#jsonpath=\\{{.data.}}
        sed -n "s/^${{key%\\}}}}=//p" "$STATE/secret-$3" | tr -d '\\n' | base64 --wrap 0 ;;
    "get job/"*) [[ ! -e $STATE/manifests ]] || cat "$STATE/conditions" ;;
    "delete job/"*) printf Complete >"$STATE/conditions" ;;
    "get pods"* | "get events"* | logs* | "rollout "* | "exec "*) echo "shown: $*" ;;
    *) exit 9 ;;
esac
"""


@dataclass
class World:
    """A clone, the tools, and what the stand-ins remember."""

    clone: Path
    bin: Path
    state: Path
    environment: dict[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        (self.state / "calls").write_text("")
        return subprocess.run(
            [self.clone / "deploy" / "deploy_to_minikube.sh", *arguments],
            env=self.environment, capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip

    @property
    def calls(self) -> list[str]:
        known = "kubectl --context minikube --namespace trading-pipelines "
        lines = (self.state / "calls").read_text().splitlines()
        return [
            line.replace(known, "kubectl ").replace("minikube --profile minikube ", "minikube ")
            for line in lines
        ]

    def changes(self) -> list[str]:
        """What it did, without what it asked; the version as TAG, the private file as FILE."""
        asked = re.compile(r"(minikube (status|image ls)|kubectl (get|kustomize))\b")
        return [
            re.sub(r"--from-env-file=\S+", "FILE", re.sub(r"[0-9a-f]{12}(-dirty-\w+)?", "TAG", one))
            for one in self.calls
            if not asked.match(one)
        ]

    def secret(self, name: str) -> dict[str, str]:
        lines = (self.state / f"secret-{name}").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)


def git(clone: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def world(tmp_path: Path) -> World:
    clone, tools, state = (tmp_path / name for name in ("clone", "bin", "state"))
    for path in (tools, state):
        path.mkdir()
    for folder in ("deploy", "config"):
        shutil.copytree(ROOT / folder, clone / folder, ignore=shutil.ignore_patterns(".env"))
    (clone / ".gitignore").write_text(".env\n")
    git(clone, "init", "--quiet")
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", "all of it")
    for tool in TOOLS:
        (tools / tool).symlink_to(str(shutil.which(tool)))
    (tools / "env").symlink_to("/usr/bin/env")
    for name, text in {"minikube": MINIKUBE, "kubectl": KUBECTL}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (state / "conditions").write_text("SuccessCriteriaMet Complete")
    environment = {
        "PATH": str(tools),
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "STATE": str(state),
        "KUBECTL": str(BIN / "kubectl"),
        "DISCORD_WEBHOOK_URL": DISCORD,
    }
    return World(clone, tools, state, environment)


COURSE = [
    "minikube start --cpus 4 --memory 6g",
    "minikube image build --tag trading-pipelines:TAG --file deploy/Dockerfile .",
    "kubectl apply --filename deploy/kubernetes/base/namespace.yaml",
    *(
        line
        for name in ("postgres", "n8n", "trading-pipelines")
        for line in (
            f"kubectl create secret generic {name} FILE --dry-run=client --output yaml",
            "kubectl apply --filename -",
        )
    ),
    "kubectl apply --filename -",
    "kubectl rollout status statefulset/postgres --timeout 10m",
    *(
        f"kubectl rollout status deployment/{name} --timeout 10m"
        for name in ("code-server", "webserver", "daemon", "live", "n8n")
    ),
]


def in_order(calls: list[str]) -> list[str]:
    """Both ends of a pipe begin at once: of a Secret the second may be told first."""
    return sorted(calls)


def test_from_nothing_to_a_running_installation(world: World) -> None:
    done = world.run()
    assert done.returncode == 0, done.stderr
    assert in_order(world.changes()) == in_order(COURSE)
    assert world.changes()[-5:] == COURSE[-5:]
    assert done.stdout.endswith(
        "  kubectl --context minikube --namespace trading-pipelines "
        "port-forward service/webserver 3000:3000\n"
    )
    assert not [*world.clone.parent.glob("tmp.*")], "the file of secrets is gone"


def test_the_version_of_what_is_applied_is_the_commit(world: World) -> None:
    world.run()
    tag = git(world.clone, "rev-parse", "--short=12", "HEAD")
    text = (world.state / "manifests").read_text()
    assert "unreleased" not in text
    assert f"docker.io/library/trading-pipelines:{tag}\n" == (world.state / "images").read_text()
    documents = [*yaml.safe_load_all(text)]
    jobs = [one["metadata"]["name"] for one in documents if one and one["kind"] == "Job"]
    assert jobs == [f"migrate-{tag}"]


def test_a_changed_tree_is_another_version_and_the_clones_index_is_left_alone(
    world: World,
) -> None:
    versions = set()
    for change in ("nothing", "tracked", "untracked", "tracked again"):
        if change != "nothing":
            file = world.clone / ("config/strategy.yaml" if "tracked" in change else "new")
            file = world.clone / "new" if change == "untracked" else file
            file.write_text(f"# {change}")
        before = git(world.clone, "status", "--porcelain")
        said = world.run("--dry-run").stdout
        assert git(world.clone, "status", "--porcelain") == before
        versions.add(said.splitlines()[0])
    assert len(versions) == 4
    assert sum("-dirty-" in version for version in versions) == 3


def test_run_again_it_changes_nothing(world: World) -> None:
    world.run()
    kept = {path.name: path.read_text() for path in world.state.iterdir() if path.name != "calls"}
    done = world.run()
    assert done.returncode == 0, done.stderr
    assert in_order(world.changes()) == in_order(COURSE[2:]), "neither started nor built"
    assert "restart" not in " ".join(world.calls)
    assert not re.search("created|configured", done.stdout)
    for name in ("images", "manifests", *(f"secret-{name}" for name in SECRETS)):
        assert (world.state / name).read_text() == kept[name], name


def test_the_secrets_hold_what_the_manifests_name(world: World) -> None:
    world.environment["HEARTBEAT_URL"] = "https://hc.example/planted"
    world.run()
    found = {name: world.secret(name) for name in SECRETS}
    assert {name: set(keys) for name, keys in found.items()} == SECRETS
    ours, password = found["trading-pipelines"], found["postgres"]["POSTGRES_PASSWORD"]
    assert re.fullmatch("[0-9a-f]{48}", password)
    place = f"trading_pipelines:{password}@postgres:5432/trading_pipelines"
    assert ours["DATABASE_URL"] == f"postgresql://{place}"
    assert ours["DAGSTER_POSTGRES_URL"] == f"postgresql+psycopg2://{place}_dagster"
    assert ours["DISCORD_WEBHOOK_URL"] == found["n8n"]["DISCORD_WEBHOOK_URL"] == DISCORD
    assert ours["N8N_WEBHOOK_SECRET"] == found["n8n"]["N8N_WEBHOOK_SECRET"] != password
    assert ours["HEARTBEAT_URL"] == "https://hc.example/planted"


def test_no_secret_is_printed_or_stands_in_a_command(world: World) -> None:
    (world.clone / "deploy" / ".env").write_text(
        "POSTGRES_PASSWORD=planted-password\nN8N_WEBHOOK_SECRET=planted-secret\n"
        "N8N_ENCRYPTION_KEY=planted-key\n"
    )
    for arguments in ([], ["--dry-run"]):
        done = world.run(*arguments)
        assert done.returncode == 0, done.stderr
        everything = done.stdout + done.stderr + "".join(world.calls)
        assert "planted" not in everything
    assert world.secret("postgres") == {"POSTGRES_PASSWORD": "planted-password"}
    assert world.secret("n8n")["N8N_ENCRYPTION_KEY"] == "planted-key"


def templates(world: World) -> dict[str, object]:
    """What the pods of each Deployment are made from: a changed one replaces them."""
    documents = yaml.safe_load_all((world.state / "manifests").read_text())
    return {
        one["metadata"]["name"]: one["spec"]["template"]
        for one in documents
        if one and one["kind"] in {"Deployment", "StatefulSet", "Job"}
    }


def test_a_changed_secret_replaces_what_reads_it_and_passwords_stay(world: World) -> None:
    world.run()
    before, of_postgres = templates(world), world.secret("postgres")
    world.environment |= {"DISCORD_WEBHOOK_URL": f"{DISCORD}2", "POSTGRES_PASSWORD": "another"}
    (world.state / "fail").write_text("kubectl kustomize *")
    assert world.run().returncode == 1, "the Secret is stored, and nothing has read it"
    (world.state / "fail").unlink()
    world.run()
    assert world.secret("trading-pipelines")["DISCORD_WEBHOOK_URL"] == f"{DISCORD}2"
    assert world.secret("postgres") == of_postgres, "the database was made with it"
    after = templates(world)
    replaced = {name for name, template in after.items() if template != before[name]}
    assert replaced == {"code-server", "webserver", "daemon", "live", "n8n"}


def test_secrets_that_cannot_be_read_are_not_made_up_anew(world: World) -> None:
    world.run()
    before = {name: world.secret(name) for name in SECRETS}
    (world.state / "fail").write_text("kubectl * get secret *")
    done = world.run()
    assert done.returncode == 1
    assert "the Secret postgres could not be read" in done.stderr
    assert {name: world.secret(name) for name in SECRETS} == before


def test_a_dry_run_prints_the_course_and_runs_nothing(world: World) -> None:
    done = world.run("--dry-run", "--backfill")
    assert done.returncode == 0, done.stderr
    assert world.calls == []
    printed = [line for line in done.stdout.splitlines() if line.startswith("+ ")]
    for step in ("start", "image build", "create secret", "kustomize", "rollout status", "exec"):
        assert any(step in line for line in printed), step


def test_a_backfill_is_followed_in_the_daemons_pod(world: World) -> None:
    options = ["--symbols", "KRW-BTC,KRW-ETH", "--start", "2025-01-01", "--end", "2025-01-31"]
    done = world.run("--backfill", *options)
    assert done.returncode == 0, done.stderr
    assert world.calls[-1] == (
        "kubectl exec deployment/daemon --container daemon -- "
        "trading-pipelines backfill --with-signals " + " ".join(options)
    )


@pytest.mark.parametrize(
    ("command", "advice", "never"),
    [
        ("minikube * start *", "begin anew", "build"),
        ("minikube * image build *", "room on the disk", "namespace.yaml"),
        ("kubectl *namespace.yaml", "is the cluster well", "secret"),
        ("kubectl * create secret generic n8n *", "the Secret n8n could not be made", "kustomize"),
        ("kubectl kustomize *", "the manifests were refused", "rollout"),
        ("kubectl * rollout status statefulset/postgres *", "statefulset/postgres does not run",
         "deployment"),
        ("kubectl * rollout status deployment/daemon *", "deployment/daemon does not run", "exec"),
        ("kubectl * exec *", "the partitions that failed", "port-forward"),
    ],
)  # fmt: skip
def test_the_first_error_ends_it_and_says_what_to_do(
    world: World, command: str, advice: str, never: str
) -> None:
    (world.state / "fail").write_text(command)
    done = world.run("--backfill")
    assert done.returncode == 1
    assert "it says why" in done.stderr
    assert advice in done.stderr.rpartition("failed: ")[2]
    assert not any(never in call for call in world.calls)
    if "rollout" in command:
        component = advice.split(maxsplit=1)[0].partition("/")[2]
        assert f"shown: logs --selector app.kubernetes.io/component={component}" in done.stderr
    (world.state / "fail").unlink()
    assert world.run("--backfill").returncode == 0, "and once mended it goes through"


def test_a_build_that_makes_no_image_is_noticed(world: World) -> None:
    (world.state / "blind").touch()
    done = world.run()
    assert done.returncode == 1
    assert "is not there after the build" in done.stderr


def test_a_migration_that_failed_is_shown_and_tried_again_by_the_next_run(world: World) -> None:
    (world.state / "conditions").write_text("FailureTarget Failed")
    done = world.run()
    assert done.returncode == 1
    assert "did not migrate the databases" in done.stderr
    assert "shown: logs --selector app.kubernetes.io/component=migrate" in done.stderr
    assert not any("deployment/" in call for call in world.calls)
    assert world.run().returncode == 0
    assert any(re.match("kubectl delete job/migrate-", call) for call in world.calls)


@pytest.mark.parametrize("tool", ["minikube", "kubectl", "git"])
def test_a_missing_tool_is_named(world: World, tool: str) -> None:
    (world.bin / tool).unlink()
    done = world.run()
    assert done.returncode == 1
    assert f"failed: there is no {tool}" in done.stderr
    assert world.calls == []


def test_without_a_way_to_discord_nothing_is_begun(world: World) -> None:
    del world.environment["DISCORD_WEBHOOK_URL"]
    done = world.run()
    assert done.returncode == 1
    assert "DISCORD_WEBHOOK_URL is not set" in done.stderr
    assert world.calls == []


def test_a_password_that_no_url_holds_is_refused(world: World) -> None:
    world.environment["POSTGRES_PASSWORD"] = "a/b@c"
    done = world.run()
    assert done.returncode == 1
    assert "POSTGRES_PASSWORD" in done.stderr
    assert "a/b@c" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--backfil"], ["--start", "2025-01-01"], ["--backfill", "--symbols"],
     ["--backfill", "--symbols", "KRW-BTC; rm"]],
)  # fmt: skip
def test_wrong_usage_is_told_from_failure(world: World, arguments: list[str]) -> None:
    done = world.run(*arguments)
    assert done.returncode == 2
    assert "see --help" in done.stderr
    assert world.calls == []


def test_help_names_every_option(world: World) -> None:
    said = world.run("--help").stdout
    script = (DEPLOY / "deploy_to_minikube.sh").read_text()
    parser = script[script.index("case $1 in") : script.index("esac")]
    options = set(re.findall(r"--[a-z-]+", parser))
    assert options
    assert all(option in said for option in options)


def test_another_profile_is_another_cluster(world: World) -> None:
    world.environment["MINIKUBE_PROFILE"] = "second"
    assert world.run().returncode == 0
    asked = [call for call in world.calls if "kustomize" not in call]
    assert all(re.match(r"(minikube --profile|kubectl --context) second ", one) for one in asked)
