"""What connects the engine with web frameworks and servers. The engine itself needs none of it."""
