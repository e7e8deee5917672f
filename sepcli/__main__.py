"""`python -m sepcli`: the same as the command `sepcli`."""

from sepcli.cli import main

if __name__ == "__main__":
    main()
