"""One small scenario, cut at each of its Redis calls and cancelled at each of its awaits: `python -m tests.cuts`."""
