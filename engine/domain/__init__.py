"""Tasks, schedules, retries and runs as plain values: no input, no output, no clock."""
