"""Services of a run: devices, start-up, interruption, reporting, files."""
