"""`python -m hub.cli`: the same as `headrace`."""

from hub.cli import main

if __name__ == "__main__":
    main()
