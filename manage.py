#!/usr/bin/env python
"""Django's command line, with platform/ on the path (see docs/adr/0002-platform-folder.md)."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent

if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "platform")]
    environment = "demo" if sys.argv[1:2] == ["demo"] else "dev"
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", f"config.settings.{environment}")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
