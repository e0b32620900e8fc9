import time

import anyio
from fastapi import FastAPI, HTTPException

from engine import NameTaken, NoSuchTask, RunContext
from integrations.fastapi import Config, TaskGroup, TaskManager

orders = TaskGroup("orders", tags=["shop"])


@orders.add_task("*/5 * * * * *", kwargs={"source": "web"}, tags=["often"], high_priority=True)
async def collect(source: str) -> None:
    await anyio.sleep(0.1)
    print(f"collected orders from the {source}")


@orders.add_task("0 3 * * *", timezone="Europe/Rome", description="Yesterday's figures")
def report() -> None:
    time.sleep(1)
    print("the report is written")


@orders.add_task("*/15 * * * * *", timeout=30, max_retries=3, retry_backoff=1)
async def pay() -> None:
    run = RunContext.current()
    if run.attempt == 1:
        raise ConnectionError("the bank does not answer")
    print(f"paid at attempt {run.attempt}, once for {run.run_id}")


@orders.add_task("0 4 1 1 *", allow_parallel=False)
async def stocktaking() -> None:
    print("stocktaking begins")
    await anyio.sleep(20)
    print("stocktaking has ended")


@orders.register_function
async def remind(customer: str) -> None:
    print(f"a reminder for {customer}")


app = FastAPI(title="Shop")
manager = TaskManager(app, Config(redis_key_prefix="shop", concurrent_tasks=4))
manager.add_task_group(orders)
app.include_router(manager.get_manager_router(), prefix="/task-manager")


@app.get("/health")
async def health() -> dict[str, bool]:
    return {"tasks": await manager.is_healthy()}


@app.put("/reminders/{customer}")
async def start_reminders(customer: str) -> dict[str, str]:
    try:
        task = await orders.create_task("remind", "*/5 * * * * *", {"customer": customer}, name=f"remind-{customer}")
    except NameTaken as error:
        raise HTTPException(409, str(error)) from error
    return {"task": task.name}


@app.delete("/reminders/{customer}")
async def stop_reminders(customer: str) -> None:
    try:
        await orders.remove_task(f"remind-{customer}")
    except NoSuchTask as error:
        raise HTTPException(404, str(error)) from error
