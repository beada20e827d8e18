"""What this machine is: GPUs, the links between them, adapters to the outside.

Takes what `nvidia-smi`, `/sys/class/infiniband` and `ibstat` say, as far as they are there, and
returns a `Seen` record; `cluster_of` turns it into the entries of a cluster file that the catalog
reads, with what deviates from the catalog's entry of the same kind. Nothing is run on the GPUs.
"""

from autoparallel.profiling.seen import Seen, look
from autoparallel.profiling.topology.cluster_file import cluster_of, cluster_text
from autoparallel.profiling.topology.nodes import cluster_of_nodes, nodes_of

__all__ = ["Seen", "cluster_of", "cluster_of_nodes", "cluster_text", "look", "nodes_of"]
