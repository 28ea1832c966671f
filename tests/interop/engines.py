"""`python -m tests.interop.engines NAME`: one engine behind `expose`, its client behind `forward`, the tailnet between.

Owns the recipes of docs/engines.md as they are tried: servers, ports, the client's program. Run it where there is only
loopback (`unshare -n`), for some of these listen at every address there is. `install_engines.sh` brings the software.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tailscale import sync
from tailscale.testing.threaded import TailnetThread
from tests.tailscale.thread_scripts import introduce

HOME = Path(os.environ.get("PYTAILSCALE_ENGINES") or Path.home() / ".cache/pytailscale/engines")
PYTHON = HOME / "venv/bin/python"
PATIENCE = 90.0
# Ray starts a process for every client, and in some runs that one dies at birth, by its own word and without us.
TRIES = 3

RAY = """
import ray
ray.init("ray://127.0.0.1:11001")

@ray.remote
def square(n):
    return n * n

assert sum(ray.get([square.remote(n) for n in range(100)])) == sum(n * n for n in range(100))
assert len(ray.get(ray.put(bytes(8 << 20)))) == 8 << 20
"""
SPARK = """
from pyspark.sql import SparkSession
spark = SparkSession.builder.remote("sc://127.0.0.1:11002").getOrCreate()
assert spark.range(100_000).selectExpr("sum(id)").collect()[0][0] == sum(range(100_000))
assert len(spark.range(50_000).selectExpr("id", "repeat('x', 50)").collect()) == 50_000
spark.stop()
"""
KAFKA = """
import asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

async def main():
    where = {"bootstrap_servers": "127.0.0.1:19094"}
    admin = AIOKafkaAdminClient(**where)
    await admin.start()
    await admin.create_topics([NewTopic("numbers", num_partitions=4, replication_factor=1)])
    await admin.close()
    async with AIOKafkaProducer(**where) as producer:
        for n in range(1000):
            await producer.send("numbers", str(n).encode(), partition=n % 4)
    async with AIOKafkaConsumer("numbers", group_id="readers", auto_offset_reset="earliest", **where) as consumer:
        seen = set()
        while len(seen) < 1000:
            seen.add(int((await consumer.getone()).value))
    assert seen == set(range(1000))

asyncio.run(main())
"""
MONGO = """
import pymongo
client = pymongo.MongoClient("mongodb://127.0.0.1:27117/?directConnection=true", serverSelectionTimeoutMS=20_000)
client.app.numbers.insert_many({"n": n, "words": "x" * 1000} for n in range(5000))
assert client.app.numbers.count_documents({"n": {"$gte": 2500}}) == 2500
assert len(list(client.app.numbers.find())) == 5000
client.close()
"""
MONGO_SERVER = """
import de.bwaldvogel.mongo.MongoServer;
import de.bwaldvogel.mongo.backend.memory.MemoryBackend;

public class Main {
    public static void main(String[] arguments) {
        new MongoServer(new MemoryBackend()).bind("127.0.0.1", 27017);
    }
}
"""
BROKER = """
process.roles={roles}
node.id={number}
controller.quorum.voters=1@127.0.0.1:9093
listeners={listeners}
advertised.listeners=LOCAL://127.0.0.1:{local},TAILNET://127.0.0.1:{forwarded}
listener.security.protocol.map=LOCAL:PLAINTEXT,TAILNET:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=LOCAL
controller.listener.names=CONTROLLER
log.dirs={folder}/data{number}
offsets.topic.replication.factor=1
group.initial.rebalance.delay.ms=0
"""

Commands = list[list[str]]


@dataclass(frozen=True)
class Engine:
    """`ports` maps each port of the server, the same on the tailnet, to the client's local one."""

    commands: Callable[[Path], Commands]
    ports: dict[int, int]
    client: str
    needs: tuple[Path, ...]
    java: bool = True

    def lacking(self) -> list[str]:
        missing = [str(path) for path in (PYTHON, *self.needs) if not path.exists()]
        return missing + (["java"] if self.java and shutil.which("java") is None else [])


def ray(folder: Path) -> Commands:
    options = ["--node-ip-address=127.0.0.1", "--ray-client-server-port=10001", "--include-dashboard=false"]
    options += ["--num-cpus=1", "--disable-usage-stats", f"--temp-dir={folder}"]
    return [[str(HOME / "venv/bin/ray"), "start", "--head", "--block", *options]]


def spark(folder: Path) -> Commands:
    home = next((HOME / "venv/lib").glob("python*")) / "site-packages/pyspark"
    keys = {
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": "15002",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.sql.warehouse.dir": str(folder),
    }
    settings = [part for key, value in keys.items() for part in ("--conf", f"{key}={value}")]
    server = "org.apache.spark.sql.connect.service.SparkConnectServer"
    return [["env", f"SPARK_HOME={home}", str(home / "bin/spark-submit"), "--class", server, "--master", "local[1]",
             *settings]]  # fmt: skip


def kafka(folder: Path) -> Commands:
    """Two brokers, the first of which is the controller too."""
    java = ["java", "-Xmx512m", "-cp", f"{HOME}/kafka/*"]
    commands = []
    for number, local, tailnet, forwarded in ((1, 9092, 9094, 19094), (2, 9192, 9194, 19194)):
        listeners = f"LOCAL://127.0.0.1:{local},TAILNET://127.0.0.1:{tailnet}"
        roles = "broker"
        if number == 1:
            listeners, roles = f"{listeners},CONTROLLER://127.0.0.1:9093", "broker,controller"
        written = folder / f"broker{number}.properties"
        written.write_text(
            BROKER.format(
                roles=roles, number=number, listeners=listeners, local=local, forwarded=forwarded, folder=folder
            )
        )
        cluster = ["-t", "MkU3OEVBNTcwNTJENDM2Qg"]
        format_it = [*java, "kafka.tools.StorageTool", "format", *cluster, "-c", str(written)]
        subprocess.run(format_it, check=True, capture_output=True)
        commands.append([*java, "kafka.Kafka", str(written)])
    return commands


def mongo(folder: Path) -> Commands:
    source = folder / "Main.java"
    source.write_text(MONGO_SERVER)
    return [["java", "-cp", f"{HOME}/mongo/*", str(source)]]


ENGINES = {
    "ray": Engine(ray, {10001: 11001}, RAY, (HOME / "venv/bin/ray",), java=False),
    "spark": Engine(spark, {15002: 11002}, SPARK, (HOME / "venv/bin/spark-submit",)),
    "kafka": Engine(kafka, {9094: 19094, 9194: 19194}, KAFKA, (HOME / "kafka",)),
    "mongodb": Engine(mongo, {27017: 27117}, MONGO, (HOME / "mongo",)),
}


@contextlib.contextmanager
def running(command: list[str], folder: Path) -> Iterator[None]:
    log = folder / "server.log"
    with log.open("ab") as output, subprocess.Popen(
        command, stdout=output, stderr=output, cwd=folder, start_new_session=True
    ) as process:  # fmt: skip
        try:
            yield
        except BaseException:
            sys.stderr.write(log.read_text(errors="replace")[-4000:])
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)


def wait_open(port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def run_client(program: str, folder: Path) -> None:
    """Run the client's program; where it fails, say what the engine's own logs end with, and try again."""
    for tries_left in reversed(range(TRIES)):
        done = subprocess.run([str(PYTHON), "-c", program], timeout=PATIENCE)
        if done.returncode == 0:
            return
        for log in sorted(folder.rglob("ray_client_server*.err")):
            sys.stderr.write(f"{log.name} ends:\n{log.read_text(errors='replace')[-2000:]}\n")
        print(f"the engine's client failed; {tries_left} more tries")
    raise SystemExit(f"the engine's client failed {TRIES} times")


def attempt(engine: Engine) -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        for command in engine.commands(folder):
            stack.enter_context(running(command, folder))
        net = stack.enter_context(TailnetThread())
        server = stack.enter_context(sync.Device("engine", **net.options()))
        client = stack.enter_context(sync.Device("app", **net.options()))
        introduce(server, client)
        ways = []
        for port, local_port in engine.ports.items():
            wait_open(port)
            stack.enter_context(server.expose(port))
            ways.append(stack.enter_context(client.forward("engine", port, local_port=local_port)))
        run_client(engine.client, folder)
        for way in ways:
            counted = way.statistics()
            assert counted.flows, f"nothing went by port {way.port}"
            print(f"port {way.port}: {counted.flows} connections, {counted.bytes_sent + counted.bytes_received} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.interop.engines", description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    attempt(ENGINES[parser.parse_args().engine])
