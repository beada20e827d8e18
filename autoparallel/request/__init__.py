"""What is asked for: flags and Hydra overrides in, one frozen `TrainingRequest` out.

Takes names from the catalog (or files), the groups `workload/`, `space/` and `site/` of
`search_spaces/` or of a user's own folder in front of it, and Hydra overrides. Returns a record in
which nothing is left open: the model and the cluster with their numbers, the job's batch, sequence
and tokens, the space as it was composed, and a list of what was assumed. Saved as `request.yaml` it
reads back as the same record. `serving_request` makes a `ServingRequest` in the same way.
"""

from autoparallel.request.build import site_record, training_request
from autoparallel.request.records import OBJECTIVES, Site, TrainingRequest
from autoparallel.request.serving import ServingRequest
from autoparallel.request.serving_build import serving_request

__all__ = [
    "OBJECTIVES",
    "ServingRequest",
    "Site",
    "TrainingRequest",
    "serving_request",
    "site_record",
    "training_request",
]
