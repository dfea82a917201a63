"""Creates the topics of links, and gives those that are there the partitions that they lack: `topics.py URL...`.

The services create what is missing, too, but never touch a topic that is there. Exit status: 0 all topics are as the
links want them, 1 the broker was not reached within the deadline, 2 a topic cannot be made to fit.
"""

from __future__ import annotations

import sys
import time

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewPartitions

from services.errors import ConfigurationError, Unavailable
from services.transports.kafka_client import KafkaUrl, parse_url
from services.transports.kafka_librdkafka import LibrdkafkaClient

DEADLINE_S = 240.0
_ANSWER_S = 10.0


def grow(link: KafkaUrl) -> None:
    """Add what partitions existing topics of `link` lack; never takes any away. Raises `KafkaException`."""
    admin = AdminClient({"bootstrap.servers": link.bootstrap, "allow.auto.create.topics": False})
    known = admin.list_topics(timeout=_ANSWER_S).topics
    lacking = [
        NewPartitions(name, partitions)
        for name, partitions in link.topics.items()
        if name in known and known[name].error is None and len(known[name].partitions) < partitions
    ]
    if lacking:
        for name, future in admin.create_partitions(lacking, operation_timeout=_ANSWER_S).items():
            future.result(_ANSWER_S)
            print(f"{name}: now {link.topics[name]} partitions")


def provide(url: str, deadline_s: float) -> None:
    """Raises `ConfigurationError`; `Unavailable` when `deadline_s` have passed."""
    link = parse_url(url)
    client = LibrdkafkaClient(link)
    deadline = time.monotonic() + deadline_s
    try:
        while True:
            try:
                grow(link)
                client.ensure_topics()
                print(f"{', '.join(link.topics)}: as the link wants them")
                return
            except (KafkaException, Unavailable) as error:
                if time.monotonic() > deadline:
                    raise Unavailable(f"{link.bootstrap} did not do it within {deadline_s:.0f} s: {error}") from None
                print(f"not yet: {error}", file=sys.stderr)
                time.sleep(1)
    finally:
        client.close()


def main(urls: list[str]) -> int:
    """See the module."""
    try:
        for url in urls:
            provide(url, DEADLINE_S)
    except ConfigurationError as error:
        print(error.message, file=sys.stderr)
        return 2
    except Unavailable as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
