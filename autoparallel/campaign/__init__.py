"""The prove loop: propose, launch, record, re-calibrate, re-rank.

Takes a saved plan and a launcher; runs short training jobs of its short list and neighbourhood
within a budget; returns the plan with what was measured, and what is now believed, beside what was
predicted. Everything that ends is on the disk before the next thing starts.
"""

from autoparallel.campaign.loop import Campaign
from autoparallel.campaign.outcome import Event
from autoparallel.campaign.record import recorded
from autoparallel.campaign.settings import Settings

__all__ = ["Campaign", "Event", "Settings", "recorded"]
