"""A model that is a command with a family: children that ignore SIGTERM, and one that has left for a session of its own."""

import os
import signal
import subprocess
import sys
import time

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
DAEMON = (
    "import os, time\n"
    "if os.fork(): os._exit(0)\n"
    "os.setsid(); os.chdir('/')\n"
    "if os.fork(): os._exit(0)\n"
    "print(os.getpid(), flush=True); time.sleep(60)\n"
)

signal.signal(signal.SIGTERM, signal.SIG_IGN)
pids = [os.getpid()]
for source, leaves in ((STUBBORN, False), (STUBBORN, True), (DAEMON, False)):
    child = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True, start_new_session=leaves)
    assert child.stdout
    said = child.stdout.readline()
    pids.append(child.pid if source == STUBBORN else int(said))
os.write(1, " ".join(map(str, pids)).encode())
time.sleep(60)
