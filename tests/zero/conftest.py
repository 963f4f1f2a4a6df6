"""Keeps pytest from importing what starts a device or an app when it is imported."""

collect_ignore = ["app.py", "jobs.py"]
