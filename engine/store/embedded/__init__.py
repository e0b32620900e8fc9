"""A Redis for development: found or installed, started when needed, shared by the processes of one machine.

place.py     where everything lies: directory, socket, locks, log
binary.py    which server binary to run
file_lock.py flock, the only thing that is trusted about who is alive
server.py    start, ask and stop one server
sharing.py   who starts it, who stops it: the part that others call
"""

from engine.store.embedded.sharing import EmbeddedRedis, embedded_redis

__all__ = ["EmbeddedRedis", "embedded_redis"]
