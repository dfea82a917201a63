"""A camera in the cluster, by Kafka's own client: in a pod of the suite, for its broker is not reached from outside.

`python -c <this file> publish ADDRESS TOPIC < frames.json` publishes frames, a list of {"key", "value": base64};
`... collect ADDRESS TOPIC PARTITIONS SECONDS` prints results as lines of JSON, until nobody reads them.
"""

from __future__ import annotations

import base64
import json
import sys
import time
import uuid

from confluent_kafka import Consumer, Producer, TopicPartition


def publish(address: str, topic: str) -> None:
    """Frames of standard input; `acks=all` is the client's default."""
    producer = Producer({"bootstrap.servers": address})
    for frame in json.load(sys.stdin):
        producer.produce(topic, base64.b64decode(frame["value"]), frame["key"])
    left = producer.flush(30)
    if left:
        raise SystemExit(f"{left} frames were not taken within 30 s")


def collect(address: str, topic: str, partitions: str, seconds: str) -> None:
    """All results since the topic's beginning."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": f"reader-{uuid.uuid4().hex}"})
    consumer.assign([TopicPartition(topic, number, 0) for number in range(int(partitions))])
    deadline = time.monotonic() + float(seconds)
    while time.monotonic() < deadline:
        for message in consumer.consume(100, 0.2):
            if message.error() is not None:
                raise SystemExit(str(message.error()))
            headers = dict(message.headers() or ())
            row = {
                "key": (message.key() or b"").decode(),
                "source": [int(headers["source-partition"]), int(headers["source-offset"])],
                "failure": headers.get("failure", b"").decode(),
                "value": base64.b64encode(message.value() or b"").decode(),
            }
            print(json.dumps(row), flush=True)  # noqa: T201 # to who asked


if __name__ == "__main__":
    {"publish": publish, "collect": collect}[sys.argv[1]](*sys.argv[2:])
