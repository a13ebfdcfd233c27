"""The only reader of os.environ: typed settings from the environment, failing loudly."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class EnvError(Exception):
    """A setting in the environment is absent or has the wrong form; the message names it."""


def env_str(name: str, default: str | None = None) -> str:
    value = os.environ.get(name)
    if value is None or value == "":
        if default is None:
            raise EnvError(f"{name} must be set")
        return default
    return value


def env_int(name: str, default: int | None = None) -> int:
    value = env_str(name, None if default is None else str(default))
    try:
        return int(value)
    except ValueError as error:
        raise EnvError(f"{name} must be a whole number, not {value!r}") from error


def env_bool(name: str, default: bool | None = None) -> bool:
    value = env_str(name, None if default is None else str(int(default))).lower()
    if value in {"1", "true", "yes", "on"}:
        return True
    if value in {"0", "false", "no", "off"}:
        return False
    raise EnvError(f"{name} must be 0 or 1, not {value!r}")


def env_list(name: str, default: str | None = None) -> list[str]:
    return [part.strip() for part in env_str(name, default).split(",") if part.strip()]


def env_secret(name: str, default: str | None = None) -> str:
    """A secret from NAME, or from the file that NAME_FILE names (Docker and Kubernetes secrets)."""
    path = os.environ.get(f"{name}_FILE")
    if path:
        return Path(path).read_text(encoding="utf-8").strip()
    return env_str(name, default)


def env_kept_secret(name: str, path: Path) -> str:
    """A secret from the environment, or else one made once and kept in `path`, readable by its owner alone."""
    if os.environ.get(name) or os.environ.get(f"{name}_FILE"):
        return env_secret(name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_urlsafe(48), encoding="utf-8")
        with suppress(FileExistsError):  # the first of several processes wins
            os.link(draft, path)
        draft.unlink()
    return path.read_text(encoding="utf-8").strip()


def env_home() -> Path:
    """ASSAY_HOME: the folder that holds var/ (database, broker, files); the project's root by default."""
    return Path(env_str("ASSAY_HOME", str(ROOT))).resolve()
