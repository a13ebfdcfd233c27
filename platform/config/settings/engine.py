"""The engine behind the port."""

from pathlib import Path

from config.env import ROOT, env_home, env_str

ENGINE = env_str("ENGINE", "local")  # local: ml_core in this process's worker; fake: the contract's fake, for tests
PRETRAINED_DIR = ROOT / "ml_core" / "pretrained"
RUNS_DIR = env_home() / "var" / "runs"
# what `python -m ml_core measure ARTIFACT --tables FOLDER` found of this machine; torch serves without it
ENGINE_TABLES_DIR = Path(env_str("ENGINE_TABLES_DIR", "") or env_home() / "var" / "cache" / "engines")
