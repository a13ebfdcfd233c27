"""Settings from the environment fail loudly."""

import pytest

from config import env


def test_an_absent_variable_without_default_is_named(monkeypatch):
    monkeypatch.delenv("ASSAY_TEST", raising=False)
    with pytest.raises(env.EnvError, match="ASSAY_TEST must be set"):
        env.env_str("ASSAY_TEST")


@pytest.mark.parametrize(("text", "value"), [("1", True), ("yes", True), ("off", False), ("False", False)])
def test_a_flag_takes_the_usual_words(monkeypatch, text, value):
    monkeypatch.setenv("ASSAY_TEST", text)
    assert env.env_bool("ASSAY_TEST") is value


@pytest.mark.parametrize("reader", [env.env_bool, env.env_int])
def test_nonsense_is_refused_with_the_name(monkeypatch, reader):
    monkeypatch.setenv("ASSAY_TEST", "perhaps")
    with pytest.raises(env.EnvError, match="ASSAY_TEST must be"):
        reader("ASSAY_TEST")


def test_a_secret_comes_from_the_file_that_name_file_names(monkeypatch, tmp_path):
    (tmp_path / "secret").write_text("s3cret\n")
    monkeypatch.setenv("ASSAY_TEST_FILE", str(tmp_path / "secret"))
    assert env.env_secret("ASSAY_TEST") == "s3cret"


def test_a_kept_secret_is_made_once_and_readable_by_its_owner_alone(monkeypatch, tmp_path):
    monkeypatch.delenv("ASSAY_TEST", raising=False)
    path = tmp_path / "var" / "secret"
    first = env.env_kept_secret("ASSAY_TEST", path)
    assert len(first) >= 50
    assert env.env_kept_secret("ASSAY_TEST", path) == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["secret"]
