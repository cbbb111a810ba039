"""Everything around a run: devices, start-up, interruption, reporting, files."""
