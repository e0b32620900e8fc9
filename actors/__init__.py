"""The roles of the engine, each an actor with a mailbox and a nursery of its own."""
