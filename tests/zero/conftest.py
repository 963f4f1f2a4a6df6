"""What lies here runs over the fake device, by `start.py`; most cannot be imported elsewhere."""

collect_ignore_glob = ["*.py"]
