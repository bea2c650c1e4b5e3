"""A consumer that knows nothing of us but the documentation: it reads every topic of a prefix,
read committed, from the first offset to the end, and rebuilds each table from Debezium's
envelopes. What is in quarantine is no table's row.

    rebuild.py BOOTSTRAP PREFIX     prints {topic without prefix: {key: row}} as JSON
"""

import json
import sys
import time

from confluent_kafka import Consumer, KafkaError, TopicPartition

SILENCE_S_MAX = 60


def rebuild(bootstrap, prefix):
    consumer = Consumer({
        "bootstrap.servers": bootstrap,
        "group.id": prefix + "foreign",
        "enable.auto.commit": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
    })
    topics = {
        name: topic for name, topic in consumer.list_topics(timeout=30).topics.items()
        if name.startswith(prefix) and not name.endswith(".quarantine")
    }
    partitions = [
        TopicPartition(name, partition, 0)
        for name, topic in topics.items() for partition in topic.partitions
    ]
    for partition in partitions:
        low, _ = consumer.get_watermark_offsets(partition, timeout=30)
        partition.offset = low
    consumer.assign(partitions)

    tables = {name[len(prefix):]: {} for name in topics}
    unread = {(partition.topic, partition.partition) for partition in partitions}
    heard = time.monotonic()
    while unread:
        message = consumer.poll(1)
        if message is None:
            if time.monotonic() - heard > SILENCE_S_MAX:
                raise SystemExit(f"nothing comes of {sorted(unread)}")
            continue
        heard = time.monotonic()
        if message.error():
            if message.error().code() != KafkaError._PARTITION_EOF:
                raise SystemExit(str(message.error()))
            unread.discard((message.topic(), message.partition()))
            continue
        take(tables[message.topic()[len(prefix):]], message)
    consumer.close()
    return tables


def take(table, message):
    key, value = message.key().decode(), message.value()
    if value is None:
        table.pop(key, None)
        return
    event = json.loads(value)
    if "op" not in event:
        table[key] = event
    elif event["op"] == "d":
        table.pop(key, None)
    else:
        table[key] = event["after"]


if __name__ == "__main__":
    json.dump(rebuild(*sys.argv[1:]), sys.stdout)
