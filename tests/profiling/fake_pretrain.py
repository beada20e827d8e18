"""Stands in for pretrain_gpt.py: prints a recorded log at its own pace, then ends as told.

fake_pretrain.py RECORDING --ends exit:N|kill|hang|orphan [Megatron arguments]
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

FOREVER = [sys.executable, "-c", "import time; time.sleep(600)"]

parser = argparse.ArgumentParser()
parser.add_argument("recording", type=Path)
parser.add_argument("--ends", default="exit:0")
parser.add_argument("--tensor-model-parallel-size", type=int, required=True)
parser.add_argument("--seen", type=Path)
arguments, _ = parser.parse_known_args()

sys.stdout.buffer.write(arguments.recording.read_bytes())
sys.stdout.buffer.flush()
if arguments.seen:
    child = subprocess.Popen(FOREVER, start_new_session=True)
    words = [str(child.pid), os.environ.get("SITE_SAYS", ""), os.environ["PET_NPROC_PER_NODE"]]
    arguments.seen.write_text(" ".join(words))
how, _, code = arguments.ends.partition(":")
if how == "hang":
    time.sleep(600)
if how == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(code or 0))
