"""`python -m jaxkit` is the command line."""

from jaxkit.cli import main

if __name__ == "__main__":
    main()
