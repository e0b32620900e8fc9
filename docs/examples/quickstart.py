"""Three tasks on a Redis of their own. Start it twice to see two workers share the work; Ctrl-C stops it."""

from datetime import datetime

import trio

from engine import Config, Engine, RunContext, TaskGroup

reports = TaskGroup("reports", tags=["example"])


@reports.add_task("* * * * * *", description="Every second; the first of six fields is the second")
async def tick() -> None:
    run = RunContext.current()
    print(f"{datetime.now().astimezone():%H:%M:%S} tick    slot {run.slot_ms}, attempt {run.attempt}", flush=True)


@reports.add_task("*/5 * * * * *", kwargs={"name": "Ada"})
def greet(name: str) -> None:
    print(f"{datetime.now().astimezone():%H:%M:%S} greet   hello {name}, from a worker thread", flush=True)


@reports.add_task("*/10 * * * * *", retry_backoff=1)
async def flaky() -> None:
    await trio.sleep(0.1)
    if RunContext.current().attempt == 1:
        raise RuntimeError("the first attempt fails, the second comes a second later")
    print(f"{datetime.now().astimezone():%H:%M:%S} flaky   worked the second time", flush=True)


engine = Engine(Config(redis_key_prefix="quickstart", embedded=True, concurrent_tasks=4), [reports])

if __name__ == "__main__":
    engine.run()
