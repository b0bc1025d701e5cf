"""The settings as the code has them."""

import pytest
from pydantic import ValidationError

from trading_pipelines.alerts.kinds import KINDS
from trading_pipelines.settings.strategy import AlertSettings, StrategySettings


def test_settings_cannot_be_changed() -> None:
    settings, key = StrategySettings(), "refresh"
    with pytest.raises(ValidationError):
        setattr(settings.data, key, False)


def test_alerts_of_a_kind_are_on_where_its_key_is_true() -> None:
    for kind in KINDS:
        assert AlertSettings.model_validate({kind: True}).is_on(kind)
        assert not AlertSettings.model_validate({kind: False}).is_on(kind)
