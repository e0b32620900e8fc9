from fastapi import FastAPI

from integrations.fastapi import Config, TaskGroup, TaskManager

orders = TaskGroup("orders")


@orders.add_task("*/5 * * * * *")
async def collect() -> None:
    print("collecting orders")


app = FastAPI()
manager = TaskManager(app, Config(redis_key_prefix="shop"))
manager.add_task_group(orders)
