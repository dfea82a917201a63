"""Creates the topics of links, and gives those that are there the partitions that they lack: `topics.py URL...`.

The services create what is missing, too, but never touch a topic that is there. How the broker is to be met is in the
environment, as it is for the services. Exit status: 0 all topics are as the links want them, 1 the broker was not
reached within the deadline, or did not do it, 2 a topic cannot be made to fit, or the settings are wrong.
"""

from __future__ import annotations

import sys
import time

from services.errors import ConfigurationError, ServiceError, Unavailable
from services.settings import KafkaSettings, parse
from services.transports.kafka_client import parse_url
from services.transports.kafka_librdkafka import LibrdkafkaClient
from services.transports.kafka_security import KafkaSecurity
from services.wiring import kafka_security

DEADLINE_S = 240.0


def provide(url: str, security: KafkaSecurity, deadline_s: float) -> None:
    """Raises `ConfigurationError`; `Unavailable` when `deadline_s` have passed."""
    link = parse_url(url)
    client = LibrdkafkaClient(link, security)
    deadline = time.monotonic() + deadline_s
    try:
        while True:
            try:
                for name, partitions in client.grow_topics().items():
                    print(f"{name}: now {partitions} partitions")
                client.ensure_topics()
                print(f"{', '.join(link.topics)}: as the link wants them")
                return
            except Unavailable as error:
                if time.monotonic() > deadline:
                    raise Unavailable(f"{link.bootstrap} did not do it within {deadline_s:.0f} s: {error}") from None
                print(f"not yet: {error}", file=sys.stderr)
                time.sleep(1)
    finally:
        client.close()


def main(urls: list[str]) -> int:
    """See the module."""
    try:
        security = kafka_security(parse(KafkaSettings, "", []))
        for url in urls:
            provide(url, security, DEADLINE_S)
    except ConfigurationError as error:
        print(error.message, file=sys.stderr)
        return 2
    except ServiceError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
