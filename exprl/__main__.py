"""`python -m exprl`."""

from exprl.cli import main

if __name__ == "__main__":
    main()
