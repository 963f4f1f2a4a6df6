"""The page and its endpoints, tried in a process of their own and in a real browser."""
