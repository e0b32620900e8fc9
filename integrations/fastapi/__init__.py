"""Troupe inside a FastAPI application: declare tasks, join its lifespan, run on its loop."""

from engine.config import Config
from engine.domain.group import TaskGroup
from engine.domain.task import Task
from integrations.fastapi.manager import TaskManager
from integrations.fastapi.schemas import HealthResponse

__all__ = ["Config", "HealthResponse", "Task", "TaskGroup", "TaskManager"]
