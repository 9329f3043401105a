"""One point, from its resolved configuration to its record. Read `runner.run_point` first, then `flow.flow`."""
