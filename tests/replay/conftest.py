"""The recording that most of these tests replay, and how it reads without the code under test."""

from pathlib import Path

import pandas as pd
import pytest

from trading_pipelines.replay import Recording

MINUTES = "upbit_krw5_1m_20250901_20250921.parquet"


@pytest.fixture(scope="session")
def minutes_file() -> Path:
    path = Path(__file__).parents[2].parent / "shared" / "data" / MINUTES
    if not path.exists():
        pytest.skip(f"needs the recording {path}")
    return path


@pytest.fixture(scope="session")
def minutes(minutes_file: Path) -> pd.DataFrame:
    return pd.read_parquet(minutes_file)


@pytest.fixture(scope="session")
def recording(minutes_file: Path) -> Recording:
    return Recording.load(minutes_file)
