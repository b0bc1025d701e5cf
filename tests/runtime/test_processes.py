"""What Dagster's processes are run with, and the package outside the clone."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr

from trading_pipelines.database.connection import DatabaseUrls
from trading_pipelines.runtime import processes
from trading_pipelines.runtime.home import Home
from trading_pipelines.runtime.processes import Process
from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.errors import SettingsError

URLS = DatabaseUrls("postgresql://u:p@h/market", "postgresql+psycopg2://u:p@h/market_dagster")
CLONE = Path(__file__).parents[2]


def environment_of(home: Path, **more: object) -> Environment:
    return Environment(
        trading_pipelines_home=home / "home",
        trading_pipelines_config=home / "config" / "strategy.yaml",
        database_url=SecretStr(URLS.market),
        **more,  # type: ignore[arg-type]
    )


def instance_settings(environment: Environment) -> dict[str, object]:
    processes.write_instance_settings(environment)
    written = Home.of(environment).dagster / "dagster.yaml"
    found: dict[str, object] = yaml.safe_load(written.read_text())
    return found


def test_without_settings_of_ones_own_dagster_gets_those_of_the_package(tmp_path: Path) -> None:
    shipped = yaml.safe_load((CLONE / "dagster.yaml").read_text())
    assert instance_settings(environment_of(tmp_path)) == shipped | processes.STORAGE


def test_a_dagster_yaml_beside_the_strategy_is_the_one_that_counts(tmp_path: Path) -> None:
    environment = environment_of(tmp_path)
    environment.trading_pipelines_config.parent.mkdir()
    (tmp_path / "config" / "dagster.yaml").write_text("telemetry: {enabled: false}")
    own = {"telemetry": {"enabled": False}}
    assert instance_settings(environment) == own | processes.STORAGE


def test_a_storage_that_a_home_of_before_names_stays(tmp_path: Path) -> None:
    environment = environment_of(tmp_path)
    environment.trading_pipelines_config.parent.mkdir()
    own = {"storage": {"postgres": {"postgres_url": {"env": "ANOTHER"}}}}
    (tmp_path / "config" / "dagster.yaml").write_text(yaml.safe_dump(own))
    assert instance_settings(environment) == own


def test_a_start_has_the_time_that_a_busy_machine_needs(
    tmp_path: Path,
) -> None:
    """The call that starts a run ends before the run counts as one that does not start."""
    environment = environment_of(tmp_path)
    variables = processes.variables(environment, URLS, tmp_path / "s.yaml")
    limit = instance_settings(environment)["run_monitoring"]
    assert isinstance(limit, dict)
    assert 180 < int(variables["DAGSTER_GRPC_TIMEOUT_SECONDS"]) < limit["start_timeout_seconds"]


def test_a_variable_of_the_operators_goes_before_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "7")
    variables = processes.variables(environment_of(tmp_path), URLS, tmp_path / "s.yaml")
    assert variables["DAGSTER_EVENT_BATCH_SIZE"] == "7"


def test_overrides_change_what_they_name_and_leave_the_rest(tmp_path: Path) -> None:
    overrides = tmp_path / "kubernetes.yaml"
    overrides.write_text("concurrency: {runs: {max_concurrent_runs: 9}}\nrun_launcher: {module: m}")
    found = instance_settings(environment_of(tmp_path, dagster_overrides=overrides))
    plain = instance_settings(environment_of(tmp_path))
    assert found.pop("run_launcher") == {"module": "m"}
    concurrency = found["concurrency"]
    assert isinstance(concurrency, dict)
    assert concurrency["runs"].pop("max_concurrent_runs") == 9
    concurrency["runs"]["max_concurrent_runs"] = 4
    assert found == plain


@pytest.mark.parametrize("text", [None, "- a list", "a: [", "\x00"])
def test_overrides_that_cannot_be_read_are_refused_with_their_file(
    tmp_path: Path, text: str | None
) -> None:
    overrides = tmp_path / "overrides.yaml"
    if text is not None:
        overrides.write_text(text)
    with pytest.raises(SettingsError, match=r"overrides\.yaml: .*; allowed: "):
        processes.write_instance_settings(environment_of(tmp_path, dagster_overrides=overrides))


@pytest.mark.parametrize(
    ("process", "listens", "finds"),
    [
        (Process.WEBSERVER, ["-h", "0.0.0.0", "-p", "3000", "--read-only"], "code:4001"),
        (Process.DAEMON, ["code", "4001", "the id of the code server"], "code:4001"),
        (Process.CODE_SERVER, ["-h", "0.0.0.0", "-p", "3000"], "code:4001"),
    ],
)
def test_a_served_process_replaces_ours_and_finds_code_server_and_databases(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    process: Process,
    listens: list[str],
    finds: str,
) -> None:
    class BecameError(Exception):
        pass

    def become(path: str, command: list[str], variables: dict[str, str]) -> None:
        assert path == sys.executable
        raise BecameError(command, variables)

    monkeypatch.setattr(os, "execve", become)
    monkeypatch.setattr(processes, "fail_orphaned_runs", lambda _: None)
    monkeypatch.setattr(processes, "refuse_where_held", lambda *_: None)
    client = "trading_pipelines.monitoring.dagster_instance.DagsterGrpcClient"
    monkeypatch.setattr(f"{client}.get_server_id", lambda _: "the id of the code server")
    environment = environment_of(
        tmp_path, code_server=finds, discord_webhook_url=SecretStr("https://discord/secret")
    )
    with pytest.raises(BecameError) as became:
        processes.serve(
            process,
            environment,
            URLS,
            host="0.0.0.0",
            port=3000,
            read_only=True,
        )
    command, variables = became.value.args
    assert all(word in command for word in listens)
    assert "secret" not in " ".join(command), "process lists show command lines"
    assert variables["DISCORD_WEBHOOK_URL"] == "https://discord/secret"
    assert variables["DAGSTER_POSTGRES_URL"] == URLS.dagster
    home = Path(variables["DAGSTER_HOME"])
    (server,) = yaml.safe_load((home / "workspace.yaml").read_text())["load_from"]
    assert server["grpc_server"] == {
        "host": "code", "port": 4001, "location_name": "trading_pipelines"
    }  # fmt: skip


def test_a_daemon_whose_code_server_does_not_come_says_so_and_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "START_SECONDS", 0)
    environment = environment_of(tmp_path, code_server="127.0.0.1:1")
    with pytest.raises(processes.ProcessError, match=r"127\.0\.0\.1:1 did not answer"):
        processes.serve(Process.DAEMON, environment, URLS, host="127.0.0.1", port=4000)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked where the clone is not."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "dagster.yaml"):
        shutil.copy(CLONE / name, source)
    for name in ("trading_pipelines", "config"):
        shutil.copytree(CLONE / name, source / name)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=source, check=True)
    (wheel,) = folder.glob("*.whl")
    shutil.unpack_archive(wheel, folder / "site", "zip")
    return folder / "site"


def test_the_wheel_runs_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    # As root the server runs as `nobody`, who can't enter pytest's own folders.
    home = Path(tempfile.mkdtemp(prefix="tp"))
    home.chmod(0o755)
    variables = {**os.environ, "PYTHONPATH": str(installed), "DATABASE_URL": "",
                 "TRADING_PIPELINES_HOME": str(home)}  # fmt: skip
    variables.pop("TRADING_PIPELINES_CONFIG", None)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "trading_pipelines.cli.main", *arguments],
            env=variables, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

    where = "import trading_pipelines; print(trading_pipelines.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where],
        env=variables, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.startswith(str(installed)), "it is the wheel that is tried"
    refused = run("status")
    assert refused.returncode == 1
    assert "trading-pipelines init" in refused.stderr
    assert run("init", ".").returncode == 0
    written = {f"{path.relative_to(tmp_path)}" for path in tmp_path.rglob("*") if path.is_file()}
    shipped = {f"{path.relative_to(CLONE)}" for path in (CLONE / "config").rglob("*.[yj]*")}
    assert written == shipped | {"config/dagster.yaml"}
    settings = tmp_path / "config" / "strategy.yaml"
    settings.write_text(settings.read_text() + "\n# mine\n")
    again = run("init", ".")
    assert "kept    config/strategy.yaml" in again.stdout
    assert settings.read_text().endswith("# mine\n")
    try:
        upgraded = run("db", "upgrade")
        assert upgraded.returncode == 0, upgraded.stderr
        assert "KRW-BTC" in run("status").stdout
    finally:
        run("down")
        shutil.rmtree(home)
