"""The engine behind the port."""

from config.env import ROOT, env_home, env_str

ENGINE = env_str("ENGINE", "local")  # local: ml_core in this process's worker; fake: the contract's fake, for tests
PRETRAINED_DIR = ROOT / "ml_core" / "pretrained"
RUNS_DIR = env_home() / "var" / "runs"
