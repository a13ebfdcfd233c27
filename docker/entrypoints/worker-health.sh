#!/bin/sh
# Healthy while a worker of this host has left a heartbeat at the broker within the last seconds.
set -eu
cd /app
exec python - <<'PYTHON'
import socket
import sys

import django

django.setup()
from config import broker

sys.exit(not any(name.endswith("@" + socket.gethostname()) for name in broker.workers_read()))
PYTHON
