"""The engine's system checks and the port's choice."""

import pytest

from apps.engine import checks, port
from apps.engine.fake import FakeEngine


def ids(found):
    return [message.id for message in found]


def test_good_settings_raise_nothing():
    assert checks.engine_check(None) == []


def test_an_unknown_engine_is_an_error(settings):
    settings.ENGINE = "remote"
    assert ids(checks.engine_check(None)) == ["engine.E001"]


def test_a_missing_pretrained_folder_is_an_error(settings, tmp_path):
    settings.PRETRAINED_DIR = tmp_path / "nothing"
    assert ids(checks.engine_check(None)) == ["engine.E002"]


def test_a_fake_engine_outside_tests_is_a_warning(settings):
    settings.ENVIRONMENT_NAME = "prod"
    assert ids(checks.engine_check(None)) == ["engine.W001"]


def test_the_port_gives_the_engine_that_the_setting_names(settings):
    port.get_engine.cache_clear()
    try:
        assert isinstance(port.get_engine(), FakeEngine)
        port.get_engine.cache_clear()
        settings.ENGINE = "remote"
        with pytest.raises(ValueError, match="remote"):
            port.get_engine()
    finally:
        port.get_engine.cache_clear()
