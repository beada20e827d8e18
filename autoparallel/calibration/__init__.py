"""Calibration: measured runs in, constants with intervals out.

`fit` is the robust bounded fit; `training` and `memory` say what is fitted to what; `spread` how
wide to be; `left_out` predicts every split group from the others; `run` does it all for files of
runs, and `profile_file` writes what it found so that `profiles` reads back exactly that.
"""

from __future__ import annotations
