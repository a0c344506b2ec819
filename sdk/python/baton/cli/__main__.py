"""`python -m baton.cli`, where the script `baton` is not on the path."""

from baton.cli import main

if __name__ == "__main__":
    main()
