"""The regression gate: a plan under version control, held against today's search.

Takes a saved plan and makes a lock file of it; takes a lock file and says whether today's code,
catalog and profiles still give that plan, and if not, which number, rule, table or code moved it.
What measures (a launcher) is passed in as samples.
"""

from autoparallel.regression.check import Finding, Verdict, checked_lock
from autoparallel.regression.lock import Lock, Samples, load_lock

__all__ = ["Finding", "Lock", "Samples", "Verdict", "checked_lock", "load_lock"]
