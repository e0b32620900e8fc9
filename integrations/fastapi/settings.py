"""The settings that the management API shows: all that say how this worker works, and none that says how to get in."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, create_model

from engine.config import Config

__all__ = ["HIDDEN", "SHOWN", "ConfigResponse", "shown"]

SHOWN: Final = (
    *("redis_key_prefix", "concurrent_tasks", "statistics_history_runs", "statistics_redis_expiration"),
    *("allow_parallel", "poll_interval", "worker_service_name", "stream_block_ms", "leader_heartbeat_interval"),
    *("leader_retry_interval", "reconciliation_interval", "retry_backoff", "retry_backoff_max"),
    *("retry_backoff_multiplier", "running_heartbeat_interval", "max_retries", "max_deliveries", "shutdown_grace"),
    *("startup_timeout", "queue_cap", "ledger_length", "retire_after", "max_payload_bytes", "unhealthy_status"),
    *("enabled", "can_lead", "embedded", "wait_replicas", "wait_for_predecessor"),
)
HIDDEN: Final = frozenset(
    {
        *("redis_host", "redis_port", "redis_url", "redis_db", "redis_tls", "redis_username", "redis_password"),
        *("redis_sentinel_username", "redis_sentinel_password"),
        *("redis_ca_file", "api_token"),
    }
)
"""Secrets, and where Redis is, which GET /health says without them."""


def _model() -> type[BaseModel]:
    fields: dict[str, Any] = {name: (Config.model_fields[name].annotation, ...) for name in SHOWN}
    return create_model("ConfigResponse", __doc__="How this worker is set up. Durations are in seconds.", **fields)


ConfigResponse = _model()


def shown(config: Config) -> BaseModel:
    """What may be seen of it."""
    return ConfigResponse(**{name: getattr(config, name) for name in SHOWN})
