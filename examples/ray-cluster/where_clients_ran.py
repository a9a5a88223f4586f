"""Count what each machine of a Ray cluster did for Flower's clients since the cluster was started.

    python examples/ray-cluster/where_clients_ran.py 192.168.0.10:6379

To be run on a machine of the cluster. A message is one client's part of a round: to train, to
evaluate, or to say who it is. Ray remembers the last 100,000 or so, but for those of a run's last
second.
"""

from __future__ import annotations

import argparse
from collections import Counter

import ray

MESSAGE = "task::answer"


def main() -> None:
    """Print a line a machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", help="host and port of the cluster")
    address = parser.parse_args().address
    ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    events = [event for event in ray.timeline() if event["cat"] == MESSAGE]
    messages = Counter(event["pid"] for event in events)
    workers = Counter(machine for machine, _ in {(event["pid"], event["tid"]) for event in events})
    for machine in sorted({node["NodeManagerAddress"] for node in ray.nodes()}):
        print(f"{machine}: {messages[machine]} messages, {workers[machine]} workers")


if __name__ == "__main__":
    main()
